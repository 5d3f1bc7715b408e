"""The model `vilbert`: two streams of which each looks at the other in the co-attention layers (NeurIPS 2019)."""

from collections.abc import Mapping
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn
from unicl_bert.bert import Bert, start_small
from unicl_bert.layers import Layer, Prediction
from unicl_regions.boxes import Regions

from unicl_cli.api import UniclError, at_least_float32, chunked
from unicl_vilbert.streams import CoLayer, RegionEmbedding, States


class NoFeatureError(UniclError, TypeError):
    """A loss or a command asks for features that a joint model does not have."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message, "use a loss of vilbert (vilbert, vilbert-refer, vilbert-answer); eval --evaluator loss"
        )


class Vilbert(nn.Module):
    """Text layers, then pairs of a co-attention layer and one more layer of each stream (section 3.1, Fig. 1).

    Its heads are here and not in the loss, so that fine-tuning starts from them: words through the text stream's table,
    classes of regions, and the product of the pooled start tokens with its two alignment logits (section 3.2).
    """

    def __init__(
        self,
        regions: nn.Module,
        text: Bert,
        layers: tuple[nn.Module, nn.Module],
        *,
        width: int,
        shared: int,
        separate_norms: bool,
        chunks: int,
    ) -> None:
        super().__init__()
        found = cast("Any", regions)
        self.text, self.regions, self.chunks = text, regions, chunks
        self.co_layers, self.region_layers = layers
        self.before = len(text.units) - len(cast("Any", self.region_layers))
        self.embed_regions = RegionEmbedding(found.width, width, separate_norms=separate_norms)
        self.classify, self.region_classes = Prediction(width), nn.Linear(width, found.classes)
        self.pool_words, self.pool_regions = nn.Linear(text.width, shared), nn.Linear(width, shared)
        self.align = nn.Linear(shared, 2)
        self.embed_dim, self.image_width = shared, width
        for module in self.children():
            if module not in (text, regions):
                module.apply(start_small)
        if hasattr(regions, "extra"):  # regions that rows of the corpus carry
            self.extra, self.check_rows = found.extra, found.check_rows

    @property
    def units(self) -> list[nn.Module]:
        return [*cast("Any", self.co_layers), *cast("Any", self.region_layers)]

    def image_tokens(self, images: Tensor) -> Tensor:
        """Encode uint8 (b, 3, H, W) to the embeddings of `<IMG>` and all regions, (b, 1 + R, width)."""
        found = self.find(images, {})
        nothing = torch.zeros_like(found.there)
        return at_least_float32(self.embed_regions(found, nothing, nothing)[0])

    def text_tokens(self, tokens: Tensor) -> Tensor:
        """Encode int64 (U, L) to the states before the first co-attention, (U, L, text width)."""
        return self.text.encode(tokens, self.text.there(tokens), layers=self.before)

    def find(self, images: Tensor, extra: Mapping[str, Tensor]) -> Regions:
        """Find the regions of uint8 (b, 3, H, W)."""
        return cast("Any", self.regions).find(images, extra)

    def forward(
        self, words: Tensor, has_word: Tensor, found: Regions, masked: tuple[Tensor, Tensor] | None = None
    ) -> States:
        """Join states of words (n, L, width) with regions; ``masked`` are those to predict and those zeroed, (n, R)."""
        nothing = torch.zeros_like(found.there)
        regions, has_region = self.embed_regions(found, *(masked or (nothing, nothing)))

        def join(rows: Tensor) -> tuple[Tensor, Tensor]:
            text, image, there, real = words[rows], regions[rows], has_word[rows], has_region[rows]
            own = self.text.units[self.before :]
            layers = cast("Any", self.co_layers), cast("Any", self.region_layers), own
            for co_layer, layer, text_layer in zip(*layers, strict=True):
                text, image = co_layer(text, image, there, real)
                text, image = text_layer(text, there), layer(image, real)
            return at_least_float32(text), at_least_float32(image)

        return States(*chunked(join, torch.arange(len(words), device=words.device), self.chunks))

    def pooled(self, states: States) -> Tensor:
        """Return ReLU(Linear(h_CLS)) ⊙ ReLU(Linear(h_IMG)), (n, shared)."""
        return self.pool_words(states.words[:, 0]).relu() * self.pool_regions(states.regions[:, 0]).relu()

    def region_logits(self, states: States) -> Tensor:
        """Return the logits of classes of the regions without `<IMG>`, (n, R, K)."""
        return self.region_classes(self.classify(states.regions[:, 1:]))

    def encode_image(self, images: Tensor) -> NoReturn:
        raise NoFeatureError("vilbert: has no image feature of its own: each image is read together with a text")

    def encode_text(self, tokens: Tensor) -> NoReturn:
        raise NoFeatureError("vilbert: has no text feature of its own: each text is read together with an image")

    def scale(self, name: str = "text") -> NoReturn:
        raise NoFeatureError("vilbert: has no scale: it scores pairs")


def build_layers(
    text: Bert, *, blocks: int, width: int, heads: int, hidden: int, shared: tuple[int, int], crossed: bool
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Build ``blocks`` co-attention layers, ``shared`` (width, heads), and as many layers of the image stream."""
    widths, hiddens = (text.width, width), (text.size.hidden, hidden)
    joint = nn.ModuleList(CoLayer(widths, hiddens, *shared, crossed=crossed) for _ in range(blocks))
    return joint, nn.ModuleList(Layer(width, heads, hidden) for _ in range(blocks))
