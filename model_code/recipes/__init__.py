"""One function per documented run, returning a full config; its docstring carries the evidence.

The order here is that of `darkroom recipes` and of `train-all`: a recipe stands after those that it starts from.
"""

from model_code.recipes import resnet18_study as resnet18_study  # isort: skip
from model_code.recipes import resnet18_strong as resnet18_strong  # isort: skip
from model_code.recipes import fastnet as fastnet  # isort: skip
from model_code.recipes import swin_study as swin_study  # isort: skip
from model_code.recipes import simsiam_study as simsiam_study  # isort: skip
from model_code.recipes import untrained_study as untrained_study  # isort: skip
from model_code.recipes import random_features_study as random_features_study  # isort: skip
