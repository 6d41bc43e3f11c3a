"""HPSv2 and every judge built like it: an open_clip model whose cosine of frame and caption is the score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor

from rayvideo.rewards.base import RewardError
from rayvideo.rewards.judge_files import check_file, read_weights, sha256
from rayvideo.rewards.openclip import Tokenizer, build, check_architecture
from rayvideo.rewards.pixels import Framing, Resize
from rayvideo.rewards.towers import TwoTowers
from rayvideo.weights import misfits

HUB_ID = "xswu/HPSv2"
EXAMPLE = f"HPS_v2.pt, or the hub id {HUB_ID}"
Version = Literal["2.0", "2.1"]
VERSIONS = get_args(Version)
NO_RELEASE = "none of the authors' files; is it complete? For weights of your own, leave 'version' out"


class Release(NamedTuple):
    """A file of HPSv2's authors, as the hub describes it."""

    file: str
    version: Version
    size: int
    sha256: str


# The first file of a version is the one that the hub id stands for; it holds fp16, and nothing but the weights. Names
# tell no version: the authors have also published the first file as HPS_v2_1.pt.
RELEASES = (
    Release(
        "HPS_v2_compressed.pt",
        "2.0",
        1_972_484_501,
        "07cb0d20626232204ca3a6ec53ff5984e7e53212a8a7b0e0ec2bac1bdaf125a1",
    ),
    Release(
        "HPS_v2.1_compressed.pt",
        "2.1",
        1_972_490_005,
        "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",
    ),
    Release("HPS_v2.pt", "2.0", 8_063_374_362, "9defdb2ba952d35ec1cb3334554bd4033e415d1397d742a9946d2ac884ed53a1"),
)


class HPSv2(TwoTowers):
    """Raw cosine of frame and caption, without logit scale; the released weights give about 0.25 to 0.27."""

    differentiable = True
    framing: ClassVar[Framing] = "letterbox"
    model: Any  # an open_clip model; the library is untyped

    def __init__(self, model: Any, tokenizer: Tokenizer, *, resize: Resize = "bilinear"):
        """Wrap an open_clip model; `HPSv2.load` is the usual way in."""
        size, preprocess = model.visual.image_size, model.visual.preprocess_cfg
        size = (size, size) if isinstance(size, int) else tuple(size)
        super().__init__(size, preprocess["mean"], preprocess["std"], resize)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    @classmethod
    def check(
        cls,
        checkpoint: str | Path | None,
        *,
        architecture: str | Path = "ViT-H-14",
        version: Version | None = None,
        **options: Any,
    ) -> None:
        """Refuse a file that is not there or, by its size, not `version`'s; of the hub, a file that is not named.

        Also an `architecture` that open_clip does not know.
        """
        if version not in (None, *VERSIONS):
            raise RewardError(f"options.version {version!r} is not allowed; HPSv2 has {', '.join(map(repr, VERSIONS))}")
        if str(checkpoint) != HUB_ID:
            check_size(check_file(checkpoint, "hpsv2", EXAMPLE), version)
        elif version is None:
            raise RewardError(f"options.version is not set; {HUB_ID} has several: {', '.join(map(repr, VERSIONS))}")
        check_architecture(architecture)

    @classmethod
    def load(
        cls,
        checkpoint: str | Path | None,
        architecture: str | Path = "ViT-H-14",
        resize: Resize = "bilinear",
        dtype: torch.dtype = torch.float32,
        version: Version | None = None,
    ) -> HPSv2:
        """Load a checkpoint, bare or in HPSv2's layout, {"state_dict": …}; every tensor must find its place.

        `checkpoint` is a file, or "xswu/HPSv2" for the file of `version` from the hub. With a `version`, a file is
        loaded only if it is, byte for byte, one that the authors published as that version.

        `architecture` is an open_clip model name (HPSv2 itself is "ViT-H-14"), or the path of an open_clip config file,
        whose tokenizer lies in the same folder if its text_cfg sets `hf_tokenizer_name`. `resize` is "bilinear" without
        antialias (InstructVideo trains with it) or "bicubic" with antialias and black bars (`hpsv2.score`).

        Raises:
            RewardError: if a file is missing, truncated, holds code, isn't `version`, or doesn't fit `architecture`.
        """
        cls.check(checkpoint, architecture=architecture, version=version)
        file = download(version) if str(checkpoint) == HUB_ID else check_file(checkpoint, "hpsv2", EXAMPLE)
        if version is not None:
            check_content(file, version)
        weights = read_weights(file)
        model, tokenizer = build(architecture)
        if wrong := misfits(model.state_dict(), weights):
            raise RewardError(
                f"{checkpoint} does not fit architecture {str(architecture)!r}: {len(wrong)} tensors are missing, "
                f"unknown or of another shape, such as {wrong[0]!r}"
            )
        model.load_state_dict(weights)
        return cls(model.to(dtype), tokenizer, resize=resize)

    @classmethod
    def shapes(
        cls,
        checkpoint: str | Path | None,
        architecture: str | Path = "ViT-H-14",
        resize: Resize = "bilinear",
        dtype: torch.dtype = torch.float32,
        version: Version | None = None,
    ) -> HPSv2:
        """The architecture without weights; no checkpoint is needed."""
        with torch.device("meta"):
            model, tokenizer = build(architecture)
            return cls(model.to(dtype), tokenizer, resize=resize)

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Features [N, D] by open_clip's image tower."""
        return self.model.encode_image(pixels.to(next(self.model.parameters()).dtype))

    def encode_captions(self, captions: Sequence[str]) -> Tensor:
        """Features [M, D] by open_clip's text tower."""
        return self.model.encode_text(self.tokenizer(captions).to(self.mean.device))


def download(version: Version | None) -> Path:
    """The released file of `version`, from the hub or from its cache on this machine."""
    name = next(release.file for release in RELEASES if release.version == version)
    try:
        return Path(hf_hub_download(HUB_ID, name))
    except (OSError, ValueError) as error:
        raise RewardError(f"{name} can't be had from hub id {HUB_ID}: {error}") from error


def check_size(file: Path, version: Version | None) -> None:
    """Refuse a file that, by its size, is none of those published as `version`.

    Raises:
        RewardError: saying which version the file is, if it is another's.
    """
    size = file.stat().st_size
    alike = [release for release in RELEASES if release.size == size]
    if version is not None and all(release.version != version for release in alike):
        is_what = f"HPSv2 {alike[0].version}, {alike[0].file}" if alike else NO_RELEASE
        raise RewardError(f"checkpoint '{file}' is not HPSv2 {version}: by its size ({size} bytes) it is {is_what}")


def check_content(file: Path, version: Version) -> None:
    """Refuse a file that is not, byte for byte, one that the authors published as `version`."""
    check_size(file, version)
    if sha256(file) not in {release.sha256 for release in RELEASES if release.version == version}:
        raise RewardError(f"checkpoint '{file}' is not HPSv2 {version}: by its SHA-256 it is {NO_RELEASE}")
