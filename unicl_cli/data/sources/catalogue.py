"""Well-known data sets without a reader of their own: where to get them, and how to prepare them."""

from typing import NamedTuple

from unicl_cli.data.sources.data_dirs import data_dirs
from unicl_cli.errors import UniclError


class KnownDataset(NamedTuple):
    """``get``: the files and their address; ``use``: how to turn them into a source."""

    get: str
    use: str


_LIST = (
    "download the images (for example with img2dataset), write list.tsv with lines 'image<TAB>caption', "
    "then run: unicl prepare --captions list.tsv"
)
ALIASES = {
    "imagenet-1k": "imagenet",
    "imagenet1k": "imagenet",
    "in1k": "imagenet",
    "in22k": "imagenet22k",
    "imagenet-22k": "imagenet22k",
    "in21k": "imagenet21k",
    "imagenet-21k": "imagenet21k",
    "cc3m": "gcc3m",
    "cc12m": "gcc12m",
    "cc15m": "gcc15m",
    "cifar-10": "cifar10",
    "cifar-100": "cifar100",
}
"""Other spellings of the names of sources and of data sets in KNOWN."""
KNOWN = {
    "gcc3m": KnownDataset(
        "Train_GCC-training.tsv (3.3 M lines 'caption<TAB>url', no header) from "
        "https://ai.google.com/research/ConceptualCaptions",
        _LIST,
    ),
    "gcc12m": KnownDataset(
        "cc12m.tsv (12.4 M lines 'url<TAB>caption', no header) from "
        "https://github.com/google-research-datasets/conceptual-12m",
        _LIST,
    ),
    "gcc15m": KnownDataset(
        "both gcc3m and gcc12m, which it consists of (Train_GCC-training.tsv and cc12m.tsv, both by Google)",
        f"{_LIST} --captions second.tsv",
    ),
    "yfcc14m": KnownDataset(
        "the images of yfcc100m_subset_data.tsv (OpenAI's list of 14,829,396 photos of YFCC100M; "
        "a copy is hf:dalle-mini/YFCC100M_OpenAI_subset)",
        "write list.tsv with lines 'image<TAB>caption', then run: unicl prepare --captions list.tsv",
    ),
    "coco": KnownDataset(
        "train2017.zip, val2017.zip and annotations/captions_train2017.json from https://cocodataset.org",
        "unpack them, then run: unicl prepare --captions 'annotations/captions_train2017.json?root=../train2017'",
    ),
    "sbu": KnownDataset(
        "SBUCaptionedPhotoDataset.tar.gz (md5 9aec147b3488753cf758b4d493422285: two line-aligned files, urls and "
        "captions) from https://www.cs.rice.edu/~vo9/sbucaptions",
        _LIST,
    ),
    "flickr30k": KnownDataset(
        "the images and results_20130124.token from the authors (request form)",
        "then run: unicl prepare --captions 'results_20130124.token?root=flickr30k-images'",
    ),
    "redcaps": KnownDataset("the annotations (JSON with url and caption) from the authors", _LIST),
    "food101": KnownDataset(
        "food-101.tar.gz (md5 85eeb15f3717b99a5da872d97d918f87) from "
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
        "unpack it, then run: unicl prepare --labels 'food-101/meta/train.txt?root=../images&suffix=.jpg&label=folder' "
        "--labels 'food-101/meta/test.txt?root=../images&suffix=.jpg&label=folder&split=test'",
    ),
    "pets": KnownDataset(
        "images.tar.gz and annotations.tar.gz (md5 5c4f3ee8e5d25df40f4fd59a7f44e54c, 95a8c909bbe2e81eed6a22bccdf3f68f) "
        "from https://www.robots.ox.ac.uk/~vgg/data/pets",
        "write list.csv with the columns image,label,split, then run: unicl prepare --labels list.csv",
    ),
    "flowers102": KnownDataset(
        "102flowers.tgz, imagelabels.mat and setid.mat (md5 52808999861908f626f3c1f4e79d11fa, "
        "e0620be6f572b9609742df49c70aed4d, a5357ecc9cb78c4bef273ce3793fc85c) from "
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102",
        "write list.csv with the columns image,label,split, then run: unicl prepare --labels list.csv",
    ),
    "dtd": KnownDataset(
        "dtd-r1.0.1.tar.gz (md5 fff73e5086ae6bdbea199a49dfb8a4c1) from https://www.robots.ox.ac.uk/~vgg/data/dtd",
        "unpack it, then run: unicl prepare --labels dtd/images",
    ),
    "eurosat": KnownDataset(
        "EuroSAT.zip (md5 c8fa014336c82ac7804f0398fcb19387) from https://github.com/phelber/eurosat",
        "unpack it, then run: unicl prepare --labels FOLDER",
    ),
}


def missing_error(name: str) -> UniclError:
    """Return the error for a name in ``KNOWN`` that is not in any of ``data_dirs``."""
    looked = [str(place / name) for place in data_dirs()]
    where = f"not found (looked for {', '.join(looked)})" if looked else "not found"
    return UniclError(f"{name}: {where}, and unicl does not download it", f"get {KNOWN[name].get}; {KNOWN[name].use}")
