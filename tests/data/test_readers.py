"""Every reader: what it reads, and what it says of input that is broken in any of the usual ways."""

import gzip
import io
import math
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from flowmaps.build import build
from flowmaps.data._dataset import Dataset, split_off
from flowmaps.oracles.checkerboard import Checkerboard


def read(name, **options):
    return build("data", {"name": name, **options})


def test_digits():
    train, test = read("digits"), read("digits", split="test")
    assert (len(train), len(test)) == (1438, 359)
    assert train.shape == (1, 8, 8)
    assert train.classes == 10
    assert train.x.min() == -1
    assert train.x.max() == 1
    x, labels = train.__getitems__([3, 1])
    assert torch.equal(x[1], train[1][0])
    assert torch.equal(labels, train.labels[[3, 1]])
    assert torch.equal(train.x, read("digits").x), "the split is fixed"
    with pytest.raises(ValueError, match="split must be 'train', 'test' or 'all'; got 'valid'"):
        read("digits", split="valid")


@pytest.mark.parametrize("kind", ["checkerboard", "eight_gaussians", "moons", "spiral"])
def test_toys(kind):
    data = read("toy", kind=kind, size=20_000)
    assert data.shape == (2,)
    assert data.x.isfinite().all()
    assert 0.3 < data.x.std() < 1.6
    assert torch.equal(data.x, read("toy", kind=kind, size=20_000).x)
    assert not torch.equal(data.x[:100], read("toy", kind=kind, size=20_000, split="test").x[:100])
    if kind == "checkerboard":
        board = Checkerboard()
        cell = ((data.x + 1) * 2).long()
        assert board.dark[cell[:, 0], cell[:, 1]].all()
    if kind == "eight_gaussians":
        assert data.classes == 8
        for k in range(8):
            centre = 2 * torch.tensor([math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)])
            # Five standard errors of a mean of 2,500 draws with deviation 0.15, 16 times: false alarm 1e-5.
            assert (data.x[data.labels == k].mean(0) - centre).abs().max() < 0.015


def test_ring_modes():
    data = read("ring_modes")
    assert data.labels.bincount().tolist() == [51, 307, 666]
    length = data.x.norm(dim=1)
    assert abs(length.mean() - 625**0.5) < 5 * 0.71 / 32 + 0.01  # a chi's mean is 1 / (4 sqrt(D)) below the root
    assert abs(length.std() - 0.707) < 0.1
    angle = torch.atan2(data.x[:, 1], data.x[:, 0])
    for k in range(3):
        centre = torch.atan2(data.x[data.labels == k, 1].mean(), data.x[data.labels == k, 0].mean())
        off = (angle[data.labels == k] - centre + torch.pi) % (2 * torch.pi) - torch.pi
        assert 9 < off.abs().max().rad2deg() < 15
    test = read("ring_modes", split="test")
    assert not torch.equal(test.x, data.x)
    assert (test.x[test.labels == 2].mean(0) - data.x[data.labels == 2].mean(0)).norm() < 0.3, "the same modes"
    with pytest.raises(ValueError, match="size and dimensions must be at least 1; got 0 and 625"):
        read("ring_modes", size=0)


def test_toy_errors():
    with pytest.raises(ValueError, match="kind must be one of 'checkerboard'"):
        read("toy", kind="rings")
    with pytest.raises(ValueError, match="size must be at least 1"):
        read("toy", size=0)


def test_splits_and_empty_parts():
    data = Dataset("d", torch.arange(10.0)[:, None])
    parts = [split_off(data, part, 0.3) for part in ("train", "test")]
    assert sorted(torch.cat([p.x for p in parts]).flatten().tolist()) == list(range(10))
    assert len(split_off(data, "all", 0.3)) == 10
    with pytest.raises(ValueError, match="the test part of d must have samples; it has none of 10 with holdout 0"):
        split_off(data, "test", 0.0)


# Arrays


def test_arrays_of_every_layout(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "points.npy", rng.normal(size=(20, 3)))
    assert read("arrays", path=str(tmp_path / "points.npy"), split="all").shape == (3,)
    images, labels = rng.integers(0, 256, (20, 5, 6, 3), dtype=np.uint8), rng.integers(0, 4, 20)
    np.savez(tmp_path / "images.npz", x=images, y=labels)
    data = read("arrays", path=str(tmp_path / "images.npz"), split="all")
    assert data.shape == (3, 5, 6), "channels first"
    assert data.classes == 4
    x, y = data.__getitems__([7])
    assert torch.allclose(x[0], torch.from_numpy(images[7].transpose(2, 0, 1)) / 127.5 - 1)
    assert y == labels[7]
    np.save(tmp_path / "grey.npy", images[..., 0])
    assert read("arrays", path=str(tmp_path / "grey.npy"), split="all").shape == (1, 5, 6)


def bad_array(tmp_path, kind):
    file = tmp_path / "a.npz"
    x = np.zeros((4, 2))
    if kind == "nan":
        x[2, 1] = np.nan
        np.savez(file, x=x)
    elif kind == "infinity":
        x[1, 0] = np.inf
        np.savez(file, x=x)
    elif kind == "truncated":
        np.savez(file, x=x)
        file.write_bytes(file.read_bytes()[:-40])
    elif kind == "empty":
        np.savez(file, x=x[:0])
    elif kind == "labels":
        np.savez(file, x=x, y=np.zeros(3))
    elif kind == "key":
        np.savez(file, a=x, b=x)
    elif kind == "objects":
        np.savez(file, x=np.array([{"a": 1}], dtype=object))
    elif kind == "strings":
        np.savez(file, x=np.array([["a", "b"]]))
    elif kind == "garbage":
        file.write_bytes(b"not numpy")
    elif kind == "zero bytes":
        file.write_bytes(b"")
    return str(file)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan", r"must hold finite numbers; 1 of 4 samples have NaN or infinity, first sample 2"),
        ("infinity", r"1 of 4 samples have NaN or infinity, first sample 1"),
        ("truncated", "must be a readable .npy or .npz file"),
        ("empty", r"must hold numbers of shape \[N, ...\] with N > 0"),
        ("labels", "labels must be one whole number >= 0 per sample; got 3 labels"),
        ("key", "must hold an array 'x'; it has a, b. Set data.key"),
        ("objects", "without pickled objects"),
        ("strings", "must hold numbers"),
        ("garbage", "must be a readable"),
        ("zero bytes", "must be a readable"),
        ("missing", "must be an existing .npy or .npz file"),
    ],
)
def test_broken_arrays(tmp_path, kind, message):
    path = bad_array(tmp_path, kind)
    with pytest.raises(ValueError, match=message):
        read("arrays", path=path)


# Pictures


def picture(size=(6, 5), mode="RGB", seed=0, kind="PNG", **options):
    channels = {"RGB": 3, "L": 1, "RGBA": 4, "CMYK": 4, "LA": 2}.get(mode, 1)
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8).squeeze()
    image = Image.fromarray(array, mode if mode in ("RGB", "L", "RGBA", "CMYK", "LA") else None).convert(mode)
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue(), image


def folder_of(tmp_path, **files):
    for name, content in files.items():
        path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(tmp_path)


def test_folder_with_classes(tmp_path):
    path = folder_of(tmp_path, **{f"{c}__{i}_dot_png": picture(seed=i)[0] for i in range(3) for c in ("cat", "dog")})
    data = read("image_folder", path=path, split="all")
    assert data.shape == (3, 5, 6)
    assert data.classes == 2
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    want = torch.from_numpy(np.array(picture(seed=1)[1])).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(data[1][0], want)
    assert read("image_folder", path=path, split="all", grey=True).shape == (1, 5, 6)
    assert read("image_folder", path=path, split="all", size=4).shape == (3, 4, 4)
    flat = tmp_path / "cat"
    assert read("image_folder", path=str(flat), split="all").classes == 0, "one folder is no class"


def test_zip_is_the_folder(tmp_path):
    contents = {f"{c}/{i}.png": picture(seed=i)[0] for i in range(3) for c in ("a", "b")}
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
        archive.writestr("readme.txt", "not a picture")
        archive.writestr("../escape.png", picture(seed=9)[0])
    zipped = read("image_zip", path=str(tmp_path / "p.zip"), split="all")
    assert len(zipped) == 7
    held = read("image_zip", path=str(tmp_path / "p.zip"), split="test", holdout=0.4, grey=True)
    assert (len(held), held.shape, held.classes) == (3, (1, 5, 6), 3)
    assert not (tmp_path.parent / "escape.png").exists(), "nothing is unpacked"
    folder_of(tmp_path / "f", **{k.replace("/", "__").replace(".png", "_dot_png"): v for k, v in contents.items()})
    folder = read("image_folder", path=str(tmp_path / "f"), split="all")
    rows = {tuple(x.flatten().tolist()) for x in zipped.x}
    assert {tuple(x.flatten().tolist()) for x in folder.x} <= rows


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "LA", "1", "I;16"])
def test_every_mode_becomes_colour_or_grey(tmp_path, mode):
    if mode == "I;16":
        array = (np.arange(30).reshape(5, 6) * 2184).astype(np.uint16)
        content = io.BytesIO()
        Image.fromarray(array).save(content, "PNG")
        data = read("image_folder", path=folder_of(tmp_path, a_dot_png=content.getvalue()), split="all", grey=True)
        assert torch.equal(data.x[0, 0], torch.from_numpy((array >> 8).astype(np.uint8))), "scaled, not clipped"
        return
    kind = "TIFF" if mode == "CMYK" else "PNG"
    name = "a_dot_tif" if mode == "CMYK" else "a_dot_png"
    content = picture(mode=mode, kind=kind)[0]
    for grey, channels in ((False, 3), (True, 1)):
        data = read("image_folder", path=folder_of(tmp_path, **{name: content}), split="all", grey=grey)
        assert data.shape == (channels, 5, 6)
        assert not data.skipped


def test_cameras_that_were_held_sideways(tmp_path):
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read("image_folder", path=str(tmp_path), split="all").shape == (3, 6, 4)


def test_unreadable_pictures_are_skipped_and_counted(tmp_path):
    good = picture()[0]
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    path = folder_of(
        tmp_path,
        a_dot_png=good,
        b_dot_png=good[: len(good) // 2],
        c_dot_png=b"",
        d_dot_jpg=b"garbage",
        e_dot_png=bomb.getvalue(),
    )
    data = read("image_folder", path=path, split="all")
    assert len(data) == 1
    assert [line.partition(":")[0] for line in data.skipped] == ["b.png", "c.png", "d.jpg", "e.png"]


def test_folders_without_sense(tmp_path):
    with pytest.raises(ValueError, match=r"must hold pictures \(.png"):
        read("image_folder", path=str(tmp_path))
    with pytest.raises(ValueError, match="must be a folder of pictures"):
        read("image_folder", path=str(tmp_path / "none"))
    with pytest.raises(ValueError, match="must hold a readable picture; all 1 failed, first a.png"):
        read("image_folder", path=folder_of(tmp_path / "bad", a_dot_png=b"x"))
    mixed = folder_of(tmp_path / "mixed", a_dot_png=picture()[0], b_dot_png=picture((7, 7))[0])
    with pytest.raises(ValueError, match=r"must have one size; a.png is \(5, 6\) and b.png is \(7, 7\). Set data.size"):
        read("image_folder", path=mixed)
    assert read("image_folder", path=mixed, size=4, split="all").shape == (3, 4, 4)
    with pytest.raises(ValueError, match="must be a zip file of pictures"):
        read("image_zip", path=str(tmp_path / "none.zip"))
    (tmp_path / "bad.zip").write_bytes(b"PK broken")
    with pytest.raises(ValueError, match="must be a whole zip file"):
        read("image_zip", path=str(tmp_path / "bad.zip"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_picture_without_permission_is_skipped(tmp_path):
    path = folder_of(tmp_path, a_dot_png=picture()[0], b_dot_png=picture()[0])
    (tmp_path / "b.png").chmod(0)
    assert len(read("image_folder", path=path, split="all").skipped) == 1


# CIFAR-10


def cifar(tmp_path, n=4, **change):
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        table = {"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), "labels": rng.integers(0, 10, n).tolist()}
        (tmp_path / name).write_bytes(pickle.dumps(table | change, protocol=2))
    return str(tmp_path)


def test_cifar(tmp_path):
    data = read("cifar10", path=cifar(tmp_path))
    assert (len(data), data.shape, data.classes) == (20, (3, 32, 32), 10)
    assert len(read("cifar10", path=str(tmp_path), split="test")) == 4
    raw = pickle.loads((tmp_path / "data_batch_2").read_bytes())
    assert torch.equal(data.x[4].flatten(), torch.from_numpy(raw["data"][0]))
    assert data.labels[5] == raw["labels"][1]


class Trap:
    def __reduce__(self):
        return (os.system, ("touch trapped",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": Trap()}, "it asks for (posix|nt).system"),
        ({"labels": [1, 2]}, "do not go together"),
        ({"labels": [1, 2, 3, 10]}, "do not go together"),
        ({"data": np.zeros((4, 7), np.uint8)}, "must be a CIFAR-10 batch"),
    ],
)
def test_broken_cifar(tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        read("cifar10", path=cifar(tmp_path, **change))
    assert not (tmp_path / "trapped").exists(), "nothing in a batch is executed"


def test_missing_and_truncated_cifar(tmp_path):
    with pytest.raises(ValueError, match="must be the folder cifar-10-batches-py with data_batch_1 in it"):
        read("cifar10", path=str(tmp_path))
    path = cifar(tmp_path)
    (tmp_path / "data_batch_3").write_bytes((tmp_path / "data_batch_3").read_bytes()[:500])
    with pytest.raises(ValueError, match="data_batch_3 must be a CIFAR-10 batch"):
        read("cifar10", path=path)
    with pytest.raises(ValueError, match="split must be 'train' or 'test'"):
        read("cifar10", path=path, split="all")


# MNIST


def idx(array):
    return struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist(tmp_path, zipped):
    rng = np.random.default_rng(0)
    for prefix, n in (("train", 5), ("t10k", 3)):
        images, labels = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8), rng.integers(0, 10, n, dtype=np.uint8)
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            content = idx(array)
            (tmp_path / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    data = read("mnist", path=str(tmp_path), split="test")
    assert (len(data), data.shape) == (3, (1, 28, 28))
    assert torch.equal(data.x[:, 0], torch.from_numpy(images))
    assert torch.equal(data.labels, torch.from_numpy(labels).long())
    assert len(read("mnist", path=str(tmp_path))) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "its first bytes say otherwise"),
        (b"\0\0\x09\x03" + b"\0" * 12, "its first bytes say otherwise"),
        (idx(np.zeros((2, 4, 4), np.uint8))[:-1], "must hold 32 bytes of data; it has 31, so it is cut"),
        (idx(np.zeros((0, 4, 4), np.uint8)), "must hold one label per image"),
        (idx(np.zeros((3, 4, 4), np.uint8)), "one label per image; got 3 images and 2 labels"),
    ],
)
def test_broken_mnist(tmp_path, content, message):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(2, np.uint8)))
    with pytest.raises(ValueError, match=message):
        read("mnist", path=str(tmp_path))


def test_missing_and_half_gzipped_mnist(tmp_path):
    with pytest.raises(ValueError, match="must be a folder with train-images-idx3-ubyte or train-images-idx3-ubyte.gz"):
        read("mnist", path=str(tmp_path))
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((2, 4, 4), np.uint8)))[:-9])
    with pytest.raises(ValueError, match="must be a whole gzip file"):
        read("mnist", path=str(tmp_path))
