"""News encoder, user encoder, and everything about their weights."""

from trainer.models.build import build_news_encoder, build_recommender
from trainer.models.configuration import NewsEncoderConfig, RecommenderConfig
from trainer.models.loading import load_model
from trainer.models.news_encoder import NewsEncoder
from trainer.models.parameters import count_parameters, parameter_groups, set_trainable
from trainer.models.projection import TeacherProjections
from trainer.models.recommender import Recommender

__all__ = [
    "NewsEncoder",
    "NewsEncoderConfig",
    "Recommender",
    "RecommenderConfig",
    "TeacherProjections",
    "build_news_encoder",
    "build_recommender",
    "count_parameters",
    "load_model",
    "parameter_groups",
    "set_trainable",
]
