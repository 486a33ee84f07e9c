"""Post-training steps against sentence-transformers, on the same press releases and encoder.

    TNR_TEST_DATA=... TNR_TEST_ENCODERS=... python tests/benchmarks/contrastive.py
    python tests/benchmarks/contrastive.py --environment FOLDER   # keep the peer's environment
    python tests/benchmarks/contrastive.py --parts same,settings,negatives --repeats 5 --compile

``same``: in-batch negatives, mean pooling, a Linear, dot products, all layers trained, dropout of
the encoder (0.1) on both sides, fp32, Adam, token ids made beforehand. That both sides compute the
same loss is checked with dropout off. ``settings``: bodies of 512 tokens, one setting after the
other on top of the last. ``negatives``: nine negatives a body, ours against ten titles a body and
everything padded to the longest length. Sides take turns within a round; ratios are of one round.
All parts together take about eight minutes on two cores. On a machine that others use, set
TNR_BENCH_CLOCK=cpu and OMP_NUM_THREADS=1: processor seconds are counted then.

sentence-transformers gets an environment of its own that sees the packages of this one, so that
torch and transformers are the same on both sides.
"""

import argparse
import os
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from doj import ROOT, encoder_folder, in_turns, make_articles, ratios, settings, spread

from trainer.hardware import emulated

PEER = ["sentence-transformers==6.2.*", "scikit-learn", "scipy", "joblib", "threadpoolctl",
        "narwhals"]  # fmt: skip
SIZES = {"body 128 x 32": (128, 32), "body 512 x 8": (512, 8)}
SEED = 1
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK = os.environ.get("TNR_BENCH_CLOCK", "wall")


def make_environment(folder: Path) -> Path:
    """Python of an environment with the peer in it, made where it is not there yet."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        found = subprocess.run(
            [str(python), "-c", "import site; print(site.getsitepackages()[0])"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        seen = [path for path in sys.path if path.endswith("site-packages")]
        lines = "\n".join(dict.fromkeys([*seen, *site.getsitepackages()]))
        (Path(found.stdout.strip()) / "shared.pth").write_text(lines + "\n")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", *PEER]
        subprocess.run(pip, check=True)
        (folder / "complete").touch()
    return python


class Ours:
    """A post-training task with its optimizer, stepped without the loop around it."""

    def __init__(self, articles: Path, tokens: int, batch: int, **dotted: Any) -> None:
        import torch

        from shards.stream import Stream
        from trainer.engine.optimizer import build_optimizer
        from trainer.engine.step_module import StepModule
        from trainer.recipes.load import load_config
        from trainer.tasks.build import build

        base = {
            "data__max_body_tokens": tokens,
            "data__in_batch_negatives": True,
            "run__global_batch": batch,
            "run__micro_batch": batch,
            "model__pooling": "mean",
            "model__trainable_layers": "None",
        }
        self.config = load_config("post_train", settings(articles, **(base | dotted)))
        torch.manual_seed(SEED)
        self.task: Any = build(self.config)
        self.module = StepModule(self.task.module, self.config.run.precision, "cpu").train()
        if self.config.run.compile:
            self.task.module.model.backbone.language_model.compile(dynamic=True)
        self.optimizer = build_optimizer(self.task.module, self.config.optimizer)
        rows = list(zip(range(8), Stream(self.task.data.order, batch, 0, 1, None), strict=False))
        self.rows = [row for _, row in rows]

    def batch(self, number: int) -> Any:
        return self.task.data.collate(self.rows[number % len(self.rows)]).batch

    def loss(self, number: int) -> Any:
        return self.module(self.batch(number))["loss"]

    def step(self, number: int) -> float:
        return timed_step(lambda: self.loss(number), self.optimizer, SEED + number)


class Peer:
    """sentence-transformers over the weights of one of our models."""

    def __init__(self, ours: Ours) -> None:
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.losses import (
            MultipleNegativesRankingLoss,
        )
        from sentence_transformers.sentence_transformer.modules import (
            Dense,
            Pooling,
            Transformer,
        )
        from sentence_transformers.util import dot_score

        self.ours = ours
        tokens = ours.config.data.max_body_tokens
        encoder = Transformer(str(encoder_folder()), max_seq_length=tokens)
        width, dense = 384, ours.task.module.model.dense
        last = Dense(width, dense.out_features, activation_function=torch.nn.Identity())
        last.linear.load_state_dict(dense.state_dict())
        pooling = Pooling(width, pooling_mode="mean")
        model = SentenceTransformer(modules=[encoder, pooling, last], device="cpu")
        self.module = MultipleNegativesRankingLoss(model, scale=1.0, similarity_fct=dot_score)
        self.module.train()
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-6)

    def loss(self, number: int) -> Any:
        import torch

        data, rows = self.ours.config.data, self.ours.rows[number % len(self.ours.rows)].rows
        features = []
        for field, longest in (("body", data.max_body_tokens), ("title", data.max_title_tokens)):
            ids, mask = self.ours.task.data.titles.tokens.batch(field, rows, longest, False)
            features.append(
                {"input_ids": torch.as_tensor(ids), "attention_mask": torch.as_tensor(mask)}
            )
        return self.module(features, torch.empty(0))

    def step(self, number: int) -> float:
        return timed_step(lambda: self.loss(number), self.optimizer, SEED + number)


class Padded(Ours):
    """Ten titles a body, each encoded, all texts padded to the longest length: the released
    method's way."""

    def loss(self, number: int) -> Any:
        import torch

        from trainer.losses.contrastive import contrastive

        batch, model = self.batch(number), self.task.module.model
        (titles,), (bodies,), places = batch.titles.parts, batch.bodies.parts, batch.title_index
        chosen = places.flatten()
        titles = model(titles.inputs[chosen], titles.mask[chosen]).view(*places.shape, -1)
        bodies = model(bodies.inputs, bodies.mask)
        return contrastive(torch.einsum("be,bce->bc", bodies, titles))


def timed_step(loss: Callable[[], Any], optimizer: Any, seed: int) -> float:
    """Seconds of one step from token ids to updated weights."""
    import torch

    torch.manual_seed(seed)
    clock = CLOCKS[CLOCK]
    start = clock()
    loss().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return clock() - start


def check_equal(ours: Any, other: Any) -> None:
    """Both sides compute the same loss, dropout off."""
    import torch

    values = []
    for side in (ours, other):
        side.module.eval()
        with torch.no_grad():
            values.append(float(side.loss(0)))
        side.module.train()
    if abs(values[0] - values[1]) > 1e-4 * abs(values[1]):
        raise RuntimeError(f"the losses differ: {values}")
    print(f"  losses without dropout: {values[0]:.6f} and {values[1]:.6f}")


def show(seconds: dict[str, list[float]], batch: int) -> None:
    base = next(iter(seconds))
    for name, values in seconds.items():
        rates = [batch / value for value in values]
        gain = spread(ratios(seconds[base], values))
        print(f"  {name:<48} {spread(rates):>24} samples/s  {gain} x", flush=True)


def bench_same(articles: Path, repeats: int) -> None:
    for name, (tokens, batch) in SIZES.items():
        print(f"\n{name}, in-batch negatives, fp32, dropout 0.1, all layers trained")
        ours = Ours(articles, tokens, batch)
        whole = Ours(articles, tokens, batch, data__batch_tokens=0)
        peer = Peer(ours)
        check_equal(ours, peer)
        sides = {
            "sentence-transformers": peer.step,
            "ours, one batch": whole.step,
            "ours, sub-batches of 4,096 tokens": ours.step,
        }
        show(in_turns(sides, repeats), batch)


def is_left_out(name: str, setting: dict[str, Any]) -> bool:
    """Whether this machine only emulates a setting's precision: then say so, and measure without
    it."""
    found = emulated(setting.get("run__precision", "fp32"), "cpu")
    if found is not None:
        print(f"  left out: {name}; {found.line('run.precision')}")
    return found is not None


def bench_settings(articles: Path, repeats: int, with_compile: bool) -> None:
    tokens, batch = SIZES["body 512 x 8"]
    print("\nbody 512 x 8, in-batch negatives: each setting on top of those above")
    added: list[tuple[str, dict[str, Any]]] = [
        ("+ attention dropout 0 (hidden dropout kept)",
         {"model__backbone__attention_dropout": 0.0}),
        ("+ bf16", {"run__precision": "bf16"}),
        ("+ top 3 of 6 layers trained", {"model__trainable_layers": 3}),
    ]  # fmt: skip
    if with_compile:
        added.append(("+ torch.compile", {"run__compile": True}))
    plain = Ours(articles, tokens, batch)
    sides: dict[str, Callable[[int], float]] = {
        "sentence-transformers": Peer(plain).step,
        "ours, sub-batches of 4,096 tokens": plain.step,
    }
    dotted: dict[str, Any] = {}
    for name, setting in added:
        if is_left_out(name, setting):
            continue
        dotted |= setting
        sides[name] = Ours(articles, tokens, batch, **dotted).step
    show(in_turns(sides, repeats), batch)


def bench_negatives(articles: Path, repeats: int) -> None:
    tokens, batch = SIZES["body 128 x 32"]
    print("\nbody 128 x 32, nine negatives a body, all layers trained")
    nine = {"data__in_batch_negatives": False}
    padded = Padded(articles, tokens, batch, **nine, data__pad_to_max=True)
    same = Ours(articles, tokens, batch, **nine)
    check_equal(same, padded)
    fast = {"model__backbone__attention_dropout": 0.0, "run__precision": "bf16"}
    sides = {
        "ten padded titles a body": padded.step,
        "ours, same dropout and precision": same.step,
    }
    name = "ours, attention dropout 0 and bf16"
    if not is_left_out(name, fast):
        sides[name] = Ours(articles, tokens, batch, **nine, **fast).step
    show(in_turns(sides, repeats), batch)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", default="same,settings,negatives")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--environment", type=Path, help="where the peer is installed, or goes")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile as well")
    parser.add_argument("--inner", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inner is None:
        with tempfile.TemporaryDirectory() as work:
            articles = make_articles(Path(work), 512)
            python = make_environment(options.environment or Path(work) / "peer")
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            words = [str(python), __file__, *sys.argv[1:], "--inner", str(articles)]
            raise SystemExit(subprocess.run(words, env=environment, cwd=ROOT).returncode)
    parts, articles = options.parts.split(","), options.inner
    if "same" in parts:
        bench_same(articles, options.repeats)
    if "settings" in parts:
        bench_settings(articles, options.repeats, options.compile)
    if "negatives" in parts:
        bench_negatives(articles, options.repeats)


if __name__ == "__main__":
    main()
