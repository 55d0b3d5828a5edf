"""Predict with a trained network on new inputs, from Python or from files."""

from finetune.predict.predictor import Predictor as Predictor, load_predictor as load_predictor
from finetune.predict.predictors import (
    Predictors as Predictors,
    load_predictors as load_predictors,
)
