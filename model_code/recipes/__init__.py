"""One function per documented run, returning a full config; its docstring carries the evidence."""

from model_code.recipes import resnet18_strong as resnet18_strong
from model_code.recipes import resnet18_study as resnet18_study
from model_code.recipes import swin_study as swin_study
