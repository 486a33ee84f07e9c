"""Packaging of Tiny-NewsRec; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="tiny-newsrec",
    version="0.1.0",
    description=(
        "Distil large pre-trained language models into small, fast news encoders "
        "for recommendation, on DeepSpeed."
    ),
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["trainer*", "launchers*", "shards*", "ds_configs*"]),
    package_data={
        "": ["py.typed"],
        "shards": ["README.md"],
        "trainer": ["README.md", "recipes/*.yaml"],
        "launchers": ["templates/*"],
        "ds_configs": ["*.json", "README.md"],
    },
    install_requires=[
        "torch>=2.6",
        "deepspeed>=0.19.8",
        "transformers>=5.0",
        "accelerate>=1.15",
        "webdataset>=1.0.2",
        "sentencepiece>=0.2",
        "tensorboard>=2.18",
        "safetensors>=0.7",
        "tyro>=0.9",
        "PyYAML>=6",
        "tqdm>=4.60",
        "numpy>=1.26",
        "filelock>=3.12",
        "packaging>=23",
        "orjson>=3.10",
        "msgspec>=0.19",
        "fsspec>=2024.6",
        "zlib-ng>=0.5",
    ],
    extras_require={
        "test": [
            "pytest>=8",
            "pytest-timeout>=2.3",
            "hypothesis>=6.100",
            "scikit-learn>=1.4",
            "scipy>=1.11",
            "ruff>=0.8",
            "mypy>=1.11",
            "matplotlib>=3.8",
            "s3fs>=2024.6",
            "aiohttp>=3.9",
        ],
        "report": ["matplotlib>=3.8"],
        "parquet": ["pyarrow>=15"],
        "remote": ["s3fs>=2024.6", "aiohttp>=3.9"],
        "gcs": ["gcsfs>=2024.6"],
    },
    entry_points={"console_scripts": ["tnr = trainer.cli.main:entry"]},
)
