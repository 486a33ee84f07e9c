"""Define ``tnr shards``: make shard sets from articles and click logs, and work with them."""

from typing import Any


def register(subparsers: Any) -> None:
    """Add ``shards`` and its verbs to the command line."""
    import shards.world.cli
    from shards import cli_build, cli_check, cli_columns, cli_look, cli_tokens

    parser = subparsers.add_parser(
        "shards",
        help="build, check and inspect shard sets of articles and clicks",
        description="Make shard sets from articles and click logs, and derive data from them.",
        epilog="Each verb explains itself: tnr shards build --help",
    )
    verbs = parser.add_subparsers(dest="shards_verb", metavar="VERB", required=True)
    modules = (cli_build, cli_check, cli_columns, cli_look, cli_tokens, shards.world.cli)
    for module in modules:
        module.register(verbs)
