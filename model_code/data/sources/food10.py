"""Food-10: the first ten classes of Food-101, as class folders of any number of images.

Source: Bossard et al. 2014, Food-101 - Mining Discriminative Components with Random Forests.
"""

from model_code.data.sources.layout import DATASETS, KnownDataset

FOOD10_CLASSES = (
    "apple_pie",
    "baby_back_ribs",
    "baklava",
    "beef_carpaccio",
    "beef_tartare",
    "beet_salad",
    "beignets",
    "bibimbap",
    "bread_pudding",
    "breakfast_burrito",
)

DATASETS["food10"] = KnownDataset(
    image_size=72,
    classes=FOOD10_CLASSES,
    origin="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/ (its first ten classes)",
)
