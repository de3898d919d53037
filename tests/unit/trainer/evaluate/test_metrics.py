"""Metrics against values computed by hand and against closed forms of Gaussians."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg

from daybreak_trainer.contract import ExtractorSettings
from daybreak_trainer.evaluate.metrics import inception, mmd
from daybreak_trainer.evaluate.metrics.clip_score import clip_score
from daybreak_trainer.evaluate.metrics.extractors import Extractor, load_extractors
from daybreak_trainer.evaluate.metrics.frechet import Statistics, frechet_distance, statistics
from daybreak_trainer.evaluate.metrics.mmd import cmmd, kid
from daybreak_trainer.evaluate.metrics.scores import FeatureSet, described, scores
from daybreak_trainer.settings import SettingsError

CPU = torch.device("cpu")


def gaussian(mean: list[float], deviations: list[float]) -> Statistics:
    """Of independent features."""
    return Statistics(np.array(mean), np.diag(np.array(deviations, dtype=np.float64)))


def test_the_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    """Of one dimension `(m1 - m2)^2 + (s1 - s2)^2`; where covariances commute, the sum of that."""
    one, other = gaussian([1.0], [2.0]), gaussian([3.0], [3.0])
    assert frechet_distance(one, other) == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2)
    diagonal = gaussian([0, 1], [1, 4]), gaussian([2, 1], [3, 2])
    assert frechet_distance(*diagonal) == pytest.approx(4 + (1 - 3) ** 2 + (4 - 2) ** 2)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-12)


def test_the_frechet_distance_takes_the_root_of_the_product() -> None:
    """As the definition's matrix square root does, for covariances that do not commute; and it is
    the same both ways round."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(5, 6)) @ np.tri(6) + 1
    covariances = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    shift = x.mean(0) - y.mean(0)
    defined = shift @ shift + np.trace(sum(covariances) - 2 * root)
    a, b = statistics(x), statistics(y)
    assert frechet_distance(a, b) == pytest.approx(defined, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(defined, rel=1e-6)


def test_singular_covariances_have_a_distance() -> None:
    """Fewer images than features are the rule during training: moving all of them by a vector is
    its squared length, exactly, and a point against a spread-out line is the line's variance."""
    features = np.random.default_rng(1).normal(size=(5, 64))
    moved = frechet_distance(statistics(features), statistics(features + 2.0))
    assert moved == pytest.approx(64 * 4.0, rel=1e-6)
    assert frechet_distance(gaussian([0, 0], [2, 0]), gaussian([0, 0], [0, 0])) == 4.0
    with pytest.raises(ValueError, match="two images at least"):
        statistics(features[:1])


def test_cmmd_by_hand() -> None:
    """Embeddings at right angles are sqrt(2) apart; lengths do not matter, each pair counts."""
    x, y = [[3.0, 0.0], [0.0, 2.0]], [[0.0, 5.0]]
    far = math.exp(-2.0 / 200.0)
    assert cmmd(x, y) == pytest.approx(1000 * ((2 + 2 * far) / 4 + 1 - 2 * (far + 1) / 2))
    assert cmmd(x, x) == pytest.approx(0, abs=1e-9)


def test_kid_by_hand() -> None:
    """Kernel `(x y / d + 1)^3`, pairs of an image with itself left out."""
    x, y = [[1.0, 1.0], [2.0, 0.0]], [[0.0, 2.0], [2.0, 2.0]]
    within_x, within_y = (2 / 2 + 1) ** 3, (4 / 2 + 1) ** 3
    between = [(2 / 2 + 1) ** 3, (4 / 2 + 1) ** 3, 1.0, (4 / 2 + 1) ** 3]
    assert kid(x, y) == pytest.approx(within_x + within_y - 2 * np.mean(between))


def test_clip_score_by_hand() -> None:
    """Cosines of pairs, not below 0, times 100."""
    images = [[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]
    texts = [[5.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]
    assert clip_score(images, texts) == pytest.approx(100 * (1 + math.sqrt(0.5) + 0) / 3)


# --- extractors, tiny ones that are made here -------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `clip` and `dino` as Hugging Face saves them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        BitImageProcessor,
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        Dinov2Config,
        Dinov2Model,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("extractors")
    torch.manual_seed(0)
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    words = ["<pad>", "a", "red", "blue", "square", "</s>"]
    text = {"vocab_size": len(words), "max_position_embeddings": 8, "eos_token_id": 5}
    text |= {"pad_token_id": 0, "bos_token_id": 1}
    clip = CLIPConfig(
        text_config=small | text,
        vision_config=small | {"image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(clip).save_pretrained(folder / "clip")
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPImageProcessor(**size).save_pretrained(folder / "clip")
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 5)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>"
    ).save_pretrained(folder / "clip")
    dino = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    Dinov2Model(dino).save_pretrained(folder / "dino")
    size = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessor(**size).save_pretrained(folder / "dino")
    return folder


def images(seed: int, count: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, 20, 20, 3), dtype=np.uint8)


def test_local_extractors_give_scores_that_say_what_they_are(models: Path) -> None:
    """By folder, and as not the standard: no figure from a tiny model is called FID or CMMD. Equal
    sets are at no distance."""
    settings = ExtractorSettings(clip=str(models / "clip"), dino=str(models / "dino"))
    found = {}
    for extractor in load_extractors(settings):
        real, drawn = extractor.images(images(0), CPU), extractor.images(images(1, 5), CPU)
        texts = extractor.texts(["a red square"] * 5, CPU) if extractor.kind == "clip" else None
        for score in scores(extractor, FeatureSet(real, drawn, texts)):
            found[extractor.kind, score.name] = score
        for score in scores(extractor, FeatureSet(real, real)):
            assert score.value == pytest.approx(0, abs=1e-4)
    assert set(found) == {
        ("clip", "mmd"),
        ("clip", "clip_score"),
        ("dino", "frechet_distance"),
        ("dino", "mmd"),
    }
    distance = found["dino", "frechet_distance"]
    assert distance.value > 0
    assert (distance.extractor, distance.standard) == ("folder dino", False)
    assert (distance.images, distance.reference_images) == (5, 6)
    (line,) = described([distance])
    assert "not the standard" in line
    assert "5 images against 6" in line


def test_long_captions_are_cut_to_what_clip_reads(models: Path) -> None:
    """Instead of an error from its position embeddings."""
    (clip,) = load_extractors(ExtractorSettings(clip=str(models / "clip")))
    texts = clip.texts(["a red blue square " * 10, "a"], CPU)
    assert texts.shape == (2, 12)


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    """The field and the path."""
    torch.save({"fc.bias": torch.zeros(3)}, tmp_path / "other.pth")
    for given in ({"clip": str(tmp_path)}, {"inception": str(tmp_path / "other.pth")}):
        (kind,) = given
        with pytest.raises(SettingsError, match=rf"evaluation.extractors.{kind}: cannot load '/"):
            load_extractors(ExtractorSettings(**given))


def test_inceptions_graph_is_that_of_its_weights(tmp_path: Path) -> None:
    """1,008 classes are the network of 2015, which pools otherwise than torchvision's; the file's
    checksum is the extractor's name, and only the known one makes a FID."""
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    weights = {
        classes: inception_v3(
            weights=None, init_weights=False, aux_logits=False, num_classes=classes
        ).state_dict()
        for classes in (1008, 1000)
    }
    weights[1000] |= {k: v for k, v in weights[1008].items() if not k.startswith("fc.")}
    features = {}
    for classes, values in weights.items():
        path = tmp_path / f"{classes}.pth"
        torch.save(values, path)
        (extractor,) = load_extractors(ExtractorSettings(inception=str(path)))
        features[classes] = extractor.images(images(0, 2), CPU)
        assert features[classes].shape == (2, 2048)
        assert extractor.label.startswith("inception_v3 sha256:")
        assert {s.name for s in scores(extractor, FeatureSet(*[features[classes]] * 2))} == {
            "frechet_distance",
            "kernel_distance",
        }
    assert not np.allclose(features[1000], features[1008])
    known = Extractor(
        "inception", f"inception_v3 sha256:{inception.FID_WEIGHTS}", torch.nn.Identity(), None
    )
    assert [(s.name, s.standard) for s in scores(known, FeatureSet(*[features[1008]] * 2))] == [
        ("fid", True),
        ("kid", True),
    ]


def test_discrepancies_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are summed block by block, with a rest at the end, to the same values."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(5, 3))
    whole = cmmd(x, y), kid(x, y)
    monkeypatch.setattr(mmd, "_BLOCK", 2)
    assert (cmmd(x, y), kid(x, y)) == pytest.approx(whole, rel=1e-9)
