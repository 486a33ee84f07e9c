"""A finetuning step: ours against the plain padded way, at the same losses.

    TNR_TEST_DATA=... TNR_TEST_ENCODERS=... python tests/benchmarks/finetune.py
    python tests/benchmarks/finetune.py --parts log,mind --repeats 5 --work FOLDER   # keep the sets
    python tests/benchmarks/finetune.py --parts mpnet --repeats 3

The plain way is the released code's set-up in a few lines of torch: 50 history slots and 5
candidates of each of 32 clicks are 1,760 titles, each padded to 30 tokens, and all of them go
through the whole backbone; the frozen layers (all but the top two) keep no gradient. It gets its
padded arrays for nothing. The other ways leave out one kind of waste after another; the last but
one is what the recipe ``finetune`` does, the last starts from the frozen layers' column
(``model.frozen_states float32``), whose filling is not counted. Model, dropout (the encoder's own:
0.1 of hidden states and of attention weights, but none in layers that come from the column),
precision (fp32), Adam, threads and the kernels of attention are the same in all of them. That they
compute the same losses and gradients is checked with dropout off.

A step is forward, backward and optimizer; ours with the norm of the gradient, which it reports.
Making our batch happens ahead of the training in a run, and is measured beside it. Ways take turns
in every round, on the same clicks, and every round gives one ratio. Parts: ``log`` and ``mind``
with all-MiniLM-L6-v2 (6 x 384), ``mpnet`` with all-mpnet-base-v2 (12 x 768) on the log of ``mind``;
see ``click_logs.py`` for the logs. The plain way of ``mpnet`` takes minutes a step.
"""

import argparse
import copy
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from click_logs import HISTORY, SKEW, TITLE_TOKENS, mind_like_log, real_log, settings
from doj import encoder_folder, in_turns, ratios, spread
from torch import Tensor, nn

CANDIDATES = 5
SEED = 1
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
clock = CLOCKS[os.environ.get("TNR_BENCH_CLOCK", "wall")]
Tensors = dict[str, Tensor]


class Ours:
    """The task of the recipe with its optimizer, stepped without the loop around it."""

    def __init__(
        self, log: tuple[Path, Path], encoder: Path, batch_size: int, **dotted: Any
    ) -> None:
        from shards.stream import Stream
        from trainer.engine.optimizer import build_optimizer
        from trainer.recipes.load import load_config
        from trainer.tasks.build import build

        same = {"run__global_batch": batch_size, "run__micro_batch": batch_size}
        self.config = load_config("finetune", settings(log, encoder, **(same | dotted)))
        torch.manual_seed(SEED)
        built = build(self.config)
        self.module: Any = built.module.train()
        self.data: Any = built.data
        self.optimizer = build_optimizer(self.module, self.config.optimizer)
        rows = zip(range(8), Stream(self.data.order, batch_size), strict=False)
        self.rows = [row for _, row in rows]
        self.collating: list[float] = []

    def made(self, number: int) -> Any:
        return self.data.collate(self.rows[number % len(self.rows)])

    def batch(self, number: int) -> Any:
        return self.made(number).batch

    def loss(self, batch: Any) -> Tensor:
        return self.module(batch)["loss"]

    def step(self, number: int) -> float:
        """Seconds of a step; those of making its batch go to ``collating``."""
        started = clock()
        batch = self.batch(number)
        self.collating.append(clock() - started)
        torch.manual_seed(SEED + number)
        started = clock()
        self.loss(batch).backward()
        nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return clock() - started


class Plain:
    """The released code's set-up, with the weights of one of our models.

    Shapes: N titles, L tokens, D width, B clicks, E news width, 50 history slots, 5 candidates.
    """

    def __init__(self, ours: Ours, *, empty_slots: bool = True) -> None:
        model = copy.deepcopy(ours.module.model)
        self.module = model
        self.language_model = model.news_encoder.backbone.language_model
        self.title_attention = model.news_encoder.pooling
        self.dense = model.news_encoder.dense
        self.user_attention = model.user_encoder.pooling
        self.no_history = model.user_encoder.pad_doc
        self.empty_slots = empty_slots
        self.optimizer = torch.optim.Adam(
            [p for p in model.parameters() if p.requires_grad], lr=ours.config.optimizer.lr
        )
        self.same = ours

    def batch(self, number: int) -> Tensors:
        """Token ids and mask of every slot ``[B, 55, 30]``, and which slots are filled ``[B, 55]``.

        ``self.same`` pads to 30 tokens and 50 slots; an empty slot is a title of padding.
        """
        found = self.same.batch(number)
        slots = torch.cat([found.history_index, found.candidate_index], dim=1)
        is_candidate = torch.ones_like(found.candidate_index, dtype=torch.bool)
        filled = torch.cat([found.history_mask, is_candidate], dim=1)
        (titles,) = found.news.parts
        ids, mask = titles.inputs[slots], titles.mask[slots]
        # Attention needs a token to look at, even in titles that nothing else looks at.
        empty = torch.zeros_like(mask[0, 0])
        empty[0] = 1
        ids = torch.where(filled[..., None], ids, self.same.data.pad_id)
        mask = torch.where(filled[..., None], mask, empty)
        return {"ids": ids, "mask": mask, "filled": filled}

    def loss(self, batch: Tensors) -> Tensor:
        filled = batch["filled"]
        if self.empty_slots:
            news = self.encode(batch["ids"].flatten(0, 1), batch["mask"].flatten(0, 1))
            news = news.view(*filled.shape, -1)
        else:
            some = self.encode(batch["ids"][filled], batch["mask"][filled])
            news = some.new_zeros(*filled.shape, some.shape[-1])
            news[filled] = some
        history, read = news[:, :HISTORY], filled[:, :HISTORY]
        history = torch.where(read[..., None], history, self.no_history)
        # Who has read nothing is one learned vector.
        last = torch.arange(HISTORY) == HISTORY - 1
        read = read | (last & ~read.any(dim=1, keepdim=True))
        users = attend(self.user_attention, history, read)
        scores = torch.einsum("bce,be->bc", news[:, HISTORY:], users)
        return nn.functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))

    def encode(self, ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        states_NLD = self.language_model(input_ids=ids_NL, attention_mask=mask_NL).last_hidden_state
        return self.dense(attend(self.title_attention, states_NLD, mask_NL.bool()))

    def step(self, number: int) -> float:
        batch = self.batch(number)
        torch.manual_seed(SEED + number)
        started = clock()
        self.loss(batch).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return clock() - started


def attend(pooling: Any, vectors: Tensor, mask: Tensor) -> Tensor:
    """Additive attention: the sum of ``vectors [N, S, D]`` by softmax(q . tanh(K v)) where masked
    in."""
    scores = pooling.query(torch.tanh(pooling.key(vectors))).squeeze(-1)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return torch.einsum("ns,nsd->nd", weights, vectors)


def check_equal(sides: dict[str, Any], tolerance: float) -> None:
    """All ways compute the same losses of two batches, and the same gradient of the second,
    dropout off; the first way is the yardstick."""
    reference: tuple[list[float], Tensor] | None = None
    for name, side in sides.items():
        side.module.eval()
        with torch.no_grad():
            first = float(side.loss(side.batch(0)))
        second = side.loss(side.batch(1))
        second.backward()
        gradient = torch.cat(
            [p.grad.flatten() for p in side.module.parameters() if p.grad is not None]
        )
        side.optimizer.zero_grad(set_to_none=True)
        side.module.train()
        found = [first, float(second.detach())], gradient
        if reference is None:
            reference = found
            continue
        apart = max(abs(a / b - 1) for a, b in zip(found[0], reference[0], strict=True))
        off = float((gradient - reference[1]).norm() / reference[1].norm())
        if apart > tolerance or off > tolerance:
            raise RuntimeError(f"{name}: losses differ by {apart:.1e}, the gradient by {off:.1e}")
    assert reference is not None
    losses_found = ", ".join(f"{loss:.6f}" for loss in reference[0])
    print(
        f"  dropout off: all ways give the losses {losses_found} and one gradient, "
        f"within {tolerance:.0e}"
    )


def describe(ours: Ours) -> None:
    """What is in a batch."""
    seen: dict[str, list[float]] = {name: [] for name in ("slots", "titles", "tokens", "forwards")}
    slots = 0
    for number in range(len(ours.rows)):
        made = ours.made(number)
        filled = made.batch.history_mask.sum() + made.batch.candidate_index.numel()
        seen["slots"].append(int(filled))
        seen["titles"].append(made.counts.texts)
        seen["tokens"].append(made.counts.tokens)
        seen["forwards"].append(len(made.batch.news.parts))
        slots += made.counts.slots
    means = {name: statistics.mean(values) for name, values in seen.items()}
    clicks = ours.config.run.global_batch
    every = clicks * (HISTORY + CANDIDATES)
    print(
        f"  a batch of {clicks}, means of {len(ours.rows)}: {means['slots']:,.0f} of {every:,} "
        f"slots filled, {means['titles']:,.0f} different titles of "
        f"{means['tokens'] / means['titles']:.1f} tokens; {means['tokens']:,.0f} tokens of the "
        f"plain way's {every * TITLE_TOKENS:,}; ours pads "
        f"{100 - 100 * sum(seen['tokens']) / slots:.1f}%, {means['forwards']:.1f} forwards"
    )


def measure(name: str, log: tuple[Path, Path], encoder: Path, options: argparse.Namespace) -> None:
    """One part: the ways in turn, each with what it leaves out."""
    print(f"\n{name}, fp32, top two layers trained, dropout 0.1", flush=True)
    same: dict[str, Any] = {}
    if options.no_attention_dropout:
        same = {"model__backbone__attention_dropout": 0.0}
        print("  without dropout of attention weights, in all ways")
    batch = options.batch
    padded = Ours(log, encoder, batch, data__pad_to_max=True, **same)
    ours = Ours(log, encoder, batch, **same)
    titles = f"{batch * (HISTORY + CANDIDATES):,}"
    sides: dict[str, Any] = {f"plain, {titles} titles of {TITLE_TOKENS} tokens": Plain(padded)}
    if not options.short:
        whole = Ours(log, encoder, batch, data__batch_tokens=0, **same)
        sides |= {
            "without empty history slots": Plain(padded, empty_slots=False),
            "+ each title once": padded,
            "+ padded to the longest of the step": whole,
        }
    sides["+ sub-batches by length: ours"] = ours
    if not options.no_column:
        column = Ours(log, encoder, batch, model__frozen_states="float32", **same)
        sides["+ the frozen layers' column"] = column
    describe(ours)
    check_equal(sides, 1e-5)
    steps: dict[str, Callable[[int], float]] = {way: side.step for way, side in sides.items()}
    seconds = in_turns(steps, options.repeats)
    show(sides, seconds)


def show(sides: dict[str, Any], seconds: dict[str, list[float]]) -> None:
    """Seconds a step, and how many times faster than the first; then with making the batch."""
    base = seconds[next(iter(seconds))]
    for way, values in seconds.items():
        line = f"  {way:<38} {spread(values, 3):>26} s  {spread(ratios(base, values), 1):>22} x"
        if isinstance(sides[way], Ours):
            making = sides[way].collating[-len(values) :]
            whole = [a + b for a, b in zip(values, making, strict=True)]
            line += (
                f"  making the batch {1e3 * statistics.median(making):.1f} ms: "
                f"{statistics.median(ratios(base, whole)):.1f} x with it"
            )
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", default="log,mind,mpnet")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32, help="clicks a step")
    parser.add_argument("--short", action="store_true", help="only the plain way and ours")
    parser.add_argument("--no-column", action="store_true", help="without the last way")
    parser.add_argument("--no-attention-dropout", action="store_true", help="in all ways")
    parser.add_argument("--impressions", type=int, default=256, help="of the made-up log")
    parser.add_argument("--skew", type=float, default=SKEW, help="0: all news are as popular")
    parser.add_argument("--work", type=Path, help="folder in which the shard sets stay")
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of "
          f"{options.repeats} in turns (extremes)")  # fmt: skip
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        for part in options.parts.split(","):
            run_part(part, work, options)


def run_part(part: str, work: Path, options: argparse.Namespace) -> None:
    """Make the log of a part, unless it is there, and measure on it."""
    encoder = encoder_folder("all-mpnet-base-v2" if part == "mpnet" else "all-MiniLM-L6-v2")
    if not encoder.is_dir():
        print(f"\n{part}: skipped, {encoder} is not there")
        return
    if part == "log":
        folder, title = work / "log", "the click log"
    else:
        folder = work / f"{part}-{options.impressions}-{options.skew}"
        title = f"MIND's lengths, logarithm of popularity spread by {options.skew}"
    sets = folder / "articles", folder / "clicks"
    if not (folder / "complete").exists():
        if part == "log":
            real_log(folder, encoder)
        else:
            mind_like_log(folder, encoder, options.impressions, options.skew)
        (folder / "complete").touch()
    measure(f"{encoder.name}, {title}", sets, encoder, options)


if __name__ == "__main__":
    main()
