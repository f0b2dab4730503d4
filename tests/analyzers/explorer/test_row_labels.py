"""Names from stores are plain text where Bokeh would read them as formulas."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("bokeh")

from bokeh.document import Document
from bokeh.models import Axis, PlainText

import trajstore
from analyzers.explorer.page import collect, fill_document

NAMES = ["$$\\frac{a}{b}$$", "\\(x\\)", "\\[y\\]"]


def test_names_in_axes_are_plain_text(tmp_path: Path):
    runs = []
    for folder in ("$$x$$", "\\(y\\)"):
        tensors = {name: torch.nn.Parameter(torch.ones(4)) for name in NAMES}
        optimizer = torch.optim.SGD(tensors.values(), lr=0.1)
        path = tmp_path / f"{folder}.zarr"
        with trajstore.Recorder(path, tensors, optimizer, sketch_bits=64):
            for _ in range(6):
                optimizer.zero_grad()
                sum((t**2).sum() for t in tensors.values()).backward()
                optimizer.step()
        runs.append(trajstore.open_run(path))
    document = Document()
    fill_document(document, collect(runs), title="names")
    labels = [
        label
        for axis in document.select({"type": Axis})
        for label in axis.major_label_overrides.values()
    ]
    assert all(isinstance(label, PlainText) for label in labels)
    texts = {label.text for label in labels}
    assert {*NAMES, "$$x$$", "\\(y\\)"} <= texts
