"""Large workloads of the alpha-beta paper: settings, losses and models."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import default_collate

from tests.train.small_workloads import RecordedLog, narrow, truncate
from train.data.large.ogbg import ogbg
from train.loop import train
from train.models.dlrm import DIM, DLRM
from train.models.fastmri_unet import FastMRIUNet
from train.models.graph_network import GraphNetwork
from train.models.translation_transformer import TranslationTransformer
from train.protocols.sweep import load_sweep
from train.settings import Training
from train.workloads.alpha_beta_large import measured_property_loss, translation_loss
from train.workloads.catalogue import WORKLOADS

PAPER = {
    "criteo-dlrm": ("nadamw", 262_144, 0.0017, 0.93, 0.995, 0.08, 0.02, 1e-10),
    "fastmri-unet": ("nadamw", 32, 0.001, 0.9, 0.998, 0.15, 0.1, 1e-10),
    "ogbg-gnn": ("nadamw", 512, 0.0017, 0.93, 0.995, 0.08, 0.02, 1e-10),
    "wmt-transformer": ("nadamw", 128, 0.001, 0.97, 0.999, 0.15, 0.1, 1e-10),
    "pythia-70m": ("adamw", 256, 0.01, 0.9, 0.95, 0.1, 0.1, 0.0),
    "pythia-160m": ("adamw", 256, 0.006, 0.9, 0.95, 0.1, 0.1, 0.0),
}


def values(t: Training) -> tuple[object, ...]:
    moments = (t.beta1, t.beta2, t.weight_decay, t.warmup_fraction, t.final_lr)
    return (t.optimizer, t.batch_size, t.lr, *moments)


@pytest.mark.parametrize("name", PAPER)
def test_settings_are_the_papers(name: str):
    assert values(WORKLOADS[name].settings) == PAPER[name]


def test_sweeps_repeat_every_run_with_the_papers_seeds():
    runs = [run.training for run in load_sweep("alpha-beta-large").runs]
    assert sorted((t.workload, t.seed) for t in runs) == sorted(
        (name, seed) for name in PAPER for seed in range(3)
    )
    runs = [run.training for run in load_sweep("alpha-beta-depth-resnet").runs]
    assert {(t.workload[-2:], t.batch_size, t.seed) for t in runs} == {
        (depth, batch, seed)
        for depth in ("18", "34")
        for batch in (64, 128, 256)
        for seed in range(4)
    }


def test_the_loop_trains_with_the_settings(monkeypatch: pytest.MonkeyPatch):
    narrow(monkeypatch)
    truncate(monkeypatch, "ogbg-gnn", 20, 4)
    log = RecordedLog()
    training = WORKLOADS["ogbg-gnn"].settings
    training = type(training)(
        **{
            **{name: getattr(training, name) for name in training.__slots__},
            "data": "embedded",
            "batch_size": 2,
            "epochs": 5,
        }
    )
    train(training, log)
    group = log.optimizer.param_groups[0]
    assert type(log.optimizer) is torch.optim.NAdam
    assert (group["betas"], group["decoupled_weight_decay"]) == ((0.93, 0.995), True)
    # One step of warmup, then a cosine over 49 steps.
    steps = np.arange(49)
    cosine = 1e-10 + (0.0017 - 1e-10) * (1 + np.cos(np.pi * steps / 49)) / 2
    np.testing.assert_allclose(log.rates, [0.0017, *cosine], rtol=1e-12)


def test_dlrm_multiplies_every_pair_of_embeddings():
    torch.manual_seed(0)
    model = DLRM(100)
    example = torch.cat([torch.rand(1, 13), torch.arange(26.0)[None] + 90], 1)
    dense = model.bottom(example[:, :13])[0]
    rows = [dense, *(model.embeddings.weight[(90 + i) % 100] for i in range(26))]
    products = [rows[i] @ rows[j] for i in range(27) for j in range(i, 27)]
    features = torch.cat([dense, torch.stack(products)])
    assert len(features) == DIM + 27 * 28 // 2
    torch.testing.assert_close(model(example), model.top(features[None])[:, 0])


def test_a_batch_of_graphs_equals_its_graphs_one_by_one():
    torch.manual_seed(0)
    data = ogbg("embedded", None).train
    examples = [data[i] for i in range(3)]
    graphs, targets = default_collate(examples)
    assert len(graphs) == 3
    model = GraphNetwork(128, width=8, n_rounds=2).eval()
    alone = torch.cat([model(default_collate([example])[0]) for example in examples])
    torch.testing.assert_close(model(graphs), alone)
    # Only the ten measured properties have a loss.
    by_hand = binary_cross_entropy_with_logits(alone[:, :10], targets[:, :10])
    torch.testing.assert_close(measured_property_loss(alone, targets), by_hand)


def test_translations_are_predicted_from_the_source_and_from_earlier_tokens():
    torch.manual_seed(0)
    model = TranslationTransformer(20, dim=8, n_layers=2, n_heads=2).eval()
    pair = torch.tensor([[[3, 4, 1, 0, 0], [7, 8, 9, 1, 0]]])
    before = model(pair)
    pair[0, 1, 2] = 12
    after = model(pair)
    # The third token is input to the fourth prediction.
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])
    pair[0, 0, 0] = 5
    assert not torch.allclose(model(pair)[:, 0], after[:, 0])
    # Padding behind the source changes nothing.
    longer = torch.nn.functional.pad(pair, (0, 2))
    torch.testing.assert_close(model(longer)[:, :5], model(pair))


def test_losses_of_translations_skip_padding_and_are_smoothed():
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[2, 1, 0], [1, 0, 0]])
    log_p = logits.log_softmax(-1)
    terms = [
        -(0.9 * log_p[i, j, targets[i, j]] + 0.1 * log_p[i, j].mean())
        for i, j in ((0, 0), (0, 1), (1, 0))
    ]
    torch.testing.assert_close(
        translation_loss(logits, targets), torch.stack(terms).mean()
    )


def test_the_unet_maps_images_to_images_of_the_same_size():
    model = FastMRIUNet((2, 4, 8))
    assert model(torch.rand(3, 1, 16, 24)).shape == (3, 1, 16, 24)


def test_pythia_predicts_from_earlier_tokens(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("transformers")
    narrow(monkeypatch)
    workload = WORKLOADS["pythia-70m"]
    model = workload.model(None, workload.settings)  # type: ignore[arg-type]
    tokens = torch.randint(256, (1, 32))
    before = model(tokens)
    tokens[0, 20] = (tokens[0, 20] + 1) % 256
    after = model(tokens)
    assert before.shape == (1, 32, 256)
    torch.testing.assert_close(before[:, :20], after[:, :20])
    assert not torch.allclose(before[:, 20], after[:, 20])
    loss = workload.task.loss(before, tokens)
    assert float(loss.detach()) == pytest.approx(math.log(256), rel=0.1)
