"""SimSiam: a backbone, a projector on top of it, and a predictor that only one of two views passes through.

Source: Chen & He 2021, arXiv:2011.10566, Sec. 3 and Appendix D; the output BatchNorm without scale and shift and the
linear layers without bias before a BatchNorm are those of the authors' code, github.com/facebookresearch/simsiam.

Shape suffixes: B = images, C = channels, H = height, W = width, D = width of an embedding.
"""

from typing import NamedTuple

from torch import Tensor, nn

EMBEDDING_WIDTH = 2048
BOTTLENECK_WIDTH = 512


class Embeddings(NamedTuple):
    """What comes out for one view.

    Attributes:
        projections_BD: Projector outputs, the paper's z.
        predictions_BD: Predictor outputs, the paper's p.
    """

    projections_BD: Tensor
    predictions_BD: Tensor


class SimSiam(nn.Module):
    """Backbone, projector and predictor.

    Args:
        backbone: Normalised float images [B, C, H, W] in, features [B, feature_width] out.
        feature_width: Width of the backbone's features.
        projector_layers: 2 as in the paper's CIFAR-10 runs, 3 as for larger images.
        embedding_width: Width D of projections and predictions, and of the projector's hidden layers.
        bottleneck_width: Hidden width of the predictor.

    Raises:
        ValueError: `projector_layers` is below 1.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_width: int,
        projector_layers: int = 2,
        embedding_width: int = EMBEDDING_WIDTH,
        bottleneck_width: int = BOTTLENECK_WIDTH,
    ) -> None:
        super().__init__()
        if projector_layers < 1:
            raise ValueError(f"a projector of {projector_layers} layers is not allowed; give 2 or 3")
        self.backbone = backbone
        widths = [feature_width] + [embedding_width] * (projector_layers - 1)
        hidden = [layer for width in widths[:-1] for layer in _hidden_layer(width, embedding_width)]
        self.projector = nn.Sequential(
            *hidden,
            nn.Linear(widths[-1], embedding_width, bias=False),
            nn.BatchNorm1d(embedding_width, affine=False),
        )
        self.predictor = nn.Sequential(
            *_hidden_layer(embedding_width, bottleneck_width), nn.Linear(bottleneck_width, embedding_width)
        )

    def forward(self, images_BCHW: Tensor) -> Embeddings:
        """Return the embeddings of one view; each view is a batch of its own, with its own BatchNorm statistics."""
        projections_BD = self.projector(self.backbone(images_BCHW))
        return Embeddings(projections_BD, self.predictor(projections_BD))


def _hidden_layer(in_width: int, out_width: int) -> list[nn.Module]:
    return [nn.Linear(in_width, out_width, bias=False), nn.BatchNorm1d(out_width), nn.ReLU()]
