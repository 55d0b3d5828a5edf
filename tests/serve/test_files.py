"""Files as samples: pictures and texts by upload; a text is never a path."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from finetune import load_predictor

LAYERS = [
    {"name": "flat", "type": "Flatten"},
    {"name": "body", "type": "Linear", "out_features": 4},
    {"name": "head", "type": "Linear", "out_features": "classes"},
]


def picture(seed, size=(8, 8)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pictures(trained, tmp_path):
    for label in ("<b>cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "data" / label / f"{number}.png").write_bytes(picture(number))
    return trained(
        "pictures",
        model={"layers": LAYERS},
        data={"source": {"type": "imagefolder", "path": str(tmp_path / "data")}},
        task={"type": "classification"},
    )


def test_files_are_predicted_as_the_predictor_does(client, pictures):
    service = client(runs=[pictures])
    sent = [picture(1), picture(7)]
    alone = [one.row() for one in load_predictor(pictures)(sent)]
    files = [("files", (f"{n}.png", content)) for n, content in enumerate(sent)]
    answer = service.post("/predict/files", files=files)
    assert answer.json()["predictions"] == {"pictures": alone}
    assert "<" not in answer.text
    inputs = [{"base64": base64.b64encode(content).decode()} for content in sent]
    assert service.post("/predict", json={"inputs": inputs}).json() == answer.json()


@pytest.mark.parametrize(
    "value",
    ["/etc/passwd", "0.png", {"base64": "!"}, {"base64": 3}, {"base64": ""}, 3, {"path": "/x"}],
    ids=str,
)
def test_no_text_is_taken_for_a_path(client, pictures, value):
    answer = client(runs=[pictures]).post("/predict", json={"inputs": [value]})
    assert answer.status_code == 422, answer.text


@pytest.mark.parametrize("content", [b"", b"no picture", picture(1)[:60]], ids=len)
def test_a_damaged_file_is_told(client, pictures, content):
    service = client(runs=[pictures])
    answer = service.post("/predict/files", files=[("files", ("a.png", content))])
    assert answer.status_code == 422, answer.text
    other = service.post("/predict/files", files=[("pages", ("a.png", content))])
    assert (other.status_code, "unknown field" in other.json()["error"]) == (422, True)
    head = {"content-type": "multipart/form-data"}
    assert service.post("/predict/files", content=b"x", headers=head).status_code in (400, 422)


def test_numbers_come_from_no_file(client):
    answer = client().post("/predict/files", files=[("files", ("a.txt", b"1"))])
    assert (answer.status_code, "is no file" in answer.json()["error"]) == (422, True)
