"""Which files in class folders are images, their grey levels, warnings and refusals."""

import os
import shutil
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps
from torchvision.datasets.folder import make_dataset

from lit_robust import data
from lit_robust.data import image_files
from lit_robust.data.image_files import decode

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
NOISE = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)


@pytest.fixture
def tree(tmp_path):
    """Two classes of three and one pictures of one colour each."""
    for part, n in (("train", 3), ("val", 1)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (8, 8), (10 * (3 * label + i), 0, 255)).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


def own(root, **kwargs):
    options = {"image_size": 8, "num_workers": 0, "val_size": 0, "augment": False} | kwargs
    return data.ImageFolderDataModule(str(root), **options)


def names(dm):
    """The training files, below the folder of their set."""
    return [os.path.relpath(path, dm.base / "train") for path, _ in files(dm)]


def files(dm):
    """The training files with their labels, as the workers get them."""
    return dm.plain_train_dataloader().workers.images.files


PLAIN = ["cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png", "dog/1.png", "dog/2.png"]


def levels(path):
    """The grey levels of a decoded picture, which must be grey."""
    image = decode(str(path))
    assert image.mode == "RGB"
    red, green, blue = np.asarray(image, np.int64).transpose(2, 0, 1)
    assert (red == green).all()
    assert (red == blue).all()
    return red


def save(path, levels, mode=None, **options):
    image = Image.fromarray(levels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def mode_of(path):
    with Image.open(path) as image:
        return image.mode


# Grey levels.


@pytest.mark.parametrize("factor", [256, 257])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_sixteen_bits_are_their_twin_of_eight_within_one_level(tmp_path, suffix, factor):
    path = save(tmp_path / f"deep{suffix}", RAMP.astype(np.uint16) * factor)
    assert mode_of(path).startswith("I")
    assert abs(levels(path) - RAMP).max() <= (0 if factor == 257 else 1)


def test_sixteen_bits_of_big_endian_and_of_32_are_read_too(tmp_path):
    image = Image.frombytes("I;16B", (16, 16), (RAMP.astype(">u2") * 257).tobytes())
    image.save(tmp_path / "big.tif")
    assert (levels(tmp_path / "big.tif") == RAMP).all()
    save(tmp_path / "wide.tif", RAMP.astype(np.int32) * 257)
    assert mode_of(tmp_path / "wide.tif") == "I"
    assert (levels(tmp_path / "wide.tif") == RAMP).all()


def test_twelve_bits_of_a_tiff_are_scaled_by_their_own_white(tmp_path):
    levels_12 = [0, 1000, 3000, 4095]
    packed = bytes.fromhex("".join(f"{level:03x}" for level in levels_12))
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(packed)) + packed
    (tmp_path / "x.tif").write_bytes(head + struct.pack("<H", len(tags)) + entries + bytes(4))
    assert levels(tmp_path / "x.tif").tolist() == [[round(level / 4095 * 255) for level in levels_12]]


def test_floats_from_zero_to_one_are_their_twin_of_eight_bits(tmp_path):
    save(tmp_path / "float.tif", (RAMP / 255).astype(np.float32))
    assert (levels(tmp_path / "float.tif") == RAMP).all()


def test_a_sixteen_bit_picture_in_colour_is_its_twin_within_one_level(tmp_path):
    rows = (NOISE.astype(">u2") * 257).reshape(24, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    (tmp_path / "colour.png").write_bytes(png(16, 24, 16, 2, raw))
    assert abs(np.asarray(decode(str(tmp_path / "colour.png")), np.int64) - NOISE).max() <= 1


def png(width, height, bits, kind, raw):
    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("1", ".png"),
        ("L", ".png"),
        ("LA", ".png"),
        ("P", ".png"),
        ("P", ".gif"),
        ("RGB", ".bmp"),
        ("RGB", ".webp"),
        ("RGBA", ".png"),
        ("CMYK", ".jpg"),
        ("CMYK", ".tif"),
        ("YCbCr", ".tif"),
    ],
)
def test_other_modes_are_converted_as_pillow_does(tmp_path, mode, suffix):
    path = save(tmp_path / f"picture{suffix}", NOISE, mode)
    with Image.open(path) as image:
        assert image.mode in (mode, "RGB")
        assert decode(str(path)).tobytes() == image.convert("RGB").tobytes()


def test_a_transparent_palette_keeps_its_colours_without_a_warning(tmp_path):
    path = save(tmp_path / "p.png", NOISE, "P", transparency=bytes(range(200)))
    with Image.open(path) as image:
        image.info.pop("transparency")
        assert decode(str(path)).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.full((4, 4), 2, np.float32), "from 2 to 2, .* to 1"),
        (np.array([[0.5, np.nan]], np.float32), "from nan to nan"),
        (np.array([[0.5, -0.1]], np.float32), "from -0.1 to 0.5"),
        (np.array([[0, 70000]], np.int32), "from 0 to 70000, .* to 65535"),
        (np.array([[0, 200]], np.int32), "32 bits .* 200 .* 8 or 16 bits"),
    ],
)
def test_values_without_a_certain_white_are_refused(tree, values, said):
    path = tree / "train" / "dog" / "x.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(OSError, match=rf"train/dog/x\.tif .*\(.*{said}.*\)"):
        own(tree)


@pytest.mark.parametrize(
    ("levels", "tags", "said"),
    [
        (RAMP.astype(np.uint16), {262: 0}, "0 for white"),
        (RAMP.astype(np.float32), {262: 0}, "0 for white"),
        (RAMP.astype(np.uint16), {339: 2}, "signed .* 16 bits"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_headers_alone_tell_what_cannot_be_converted(tree, monkeypatch, levels, tags, said, whole):
    monkeypatch.setattr(image_files, "DECODED", 20_000 if whole else 0)
    Image.fromarray(levels).save(tree / "val" / "dog" / "x.tif", tiffinfo=tags)
    with pytest.raises(OSError, match=rf"val/dog/x\.tif .*{said}"):
        own(tree)


def test_colours_that_pillow_does_not_convert_are_refused(tree):
    Image.new("LAB", (8, 8)).save(tree / "train" / "cat" / "lab.tif")
    with pytest.raises(OSError, match=r"cat/lab\.tif .*\(mode LAB "):
        own(tree)


# Orientation and frames.


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(10))
def test_the_exif_orientation_is_applied_once(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"turned{suffix}", NOISE, exif=exif)
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image)
        assert decode(str(path)).tobytes() == expected.convert("RGB").tobytes()
    assert decode(str(path)).size == ((24, 16) if orientation in (5, 6, 7, 8) else (16, 24))


def test_sixteen_bits_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "deep.png", RAMP.astype(np.uint16) * 257, exif=exif)
    assert (levels(path) == np.rot90(RAMP, -1)).all()


def test_broken_exif_data_do_not_hinder_an_image(tmp_path):
    path = save(tmp_path / "x.jpg", NOISE, exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode(str(path)).size == (16, 24)


@pytest.mark.parametrize("suffix", [".gif", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("whole", [True, False])
def test_the_first_of_several_frames_is_used_with_a_warning(tree, monkeypatch, suffix, whole):
    monkeypatch.setattr(image_files, "DECODED", 20_000 if whole else 0)
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 250, 0)))
    path = tree / "train" / "cat" / f"3{suffix}"
    first.save(path, save_all=True, append_images=[second], **({"lossless": True} if suffix == ".webp" else {}))
    with pytest.warns(UserWarning, match=rf"frames.*: 1, .*cat/3\{suffix} "):
        dm = own(tree)
    assert decode(str(path)).getpixel((0, 0)) == (250, 0, 0)
    assert names(dm) == ["cat/0.png", "cat/1.png", "cat/2.png", f"cat/3{suffix}", *PLAIN[3:]]


# What is an image and what is a class.


def test_gifs_and_other_suffixes_are_images_whatever_their_case(tree):
    for name in ("3.gif", "4.GIF", "5.JPG", "6.jfif", "7.TIFF"):
        kind = {"3": "GIF", "4": "GIF", "5": "JPEG", "6": "JPEG", "7": "TIFF"}[name[0]]
        Image.new("RGB", (8, 8)).save(tree / "train" / "cat" / name, kind)
    (tree / "train" / "cat" / "0.png").rename(tree / "train" / "cat" / "8.jpg")  # still a PNG, as one of ImageNet's
    assert [name for name in names(own(tree)) if name.startswith("cat")] == [
        "cat/1.png", "cat/2.png", "cat/3.gif", "cat/4.GIF", "cat/5.JPG", "cat/6.jfif", "cat/7.TIFF", "cat/8.jpg"
    ]  # fmt: skip


def test_images_that_are_not_read_are_refused_by_name(tree):
    for suffix in (".heic", ".JP2", ".avif", ".tga"):
        (tree / "train" / "dog" / f"a{suffix}").write_bytes(b"anything")
    with pytest.raises(OSError, match=r" 4 files .*a\.JP2 \(\.jp2 "):
        own(tree)


def test_every_suffix_of_an_image_that_pillow_knows_is_read_or_refused():
    documents = {".pdf", ".ps", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr", ".iim", ".palm", ".gbr", ".blp"}
    rest = {".dcx", ".flc", ".ftc", ".ftu", ".fit"}
    assert set(Image.registered_extensions()) <= image_files.READ | image_files.REFUSED | documents | rest


def test_files_that_are_no_images_are_reported_in_one_line(tree):
    (tree / "train" / "dog" / "boxes.txt").write_text("0 1 2 3")
    (tree / "val" / "cat" / "notes").write_text("")
    (tree / "train" / "loose.png").write_bytes((tree / "train" / "cat" / "0.png").read_bytes())
    with pytest.warns(UserWarning, match=r": 3, \S*train/dog/boxes\.txt "):
        dm = own(tree)
    assert names(dm) == PLAIN


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints",
        "__MACOSX",
        "@eaDir",
        "$RECYCLE.BIN",
        "$Recycle.Bin",
        "System Volume Information",
        "lost+found",
    ],
)
def test_hidden_folders_are_neither_classes_nor_images(tree, name):
    picture = (tree / "train" / "cat" / "0.png").read_bytes()
    for folder in (tree / "train", tree / "val", tree / "train" / "cat", tree / "val" / "dog"):
        (folder / name).mkdir()
        (folder / name / "0-checkpoint.png").write_bytes(picture)
    dm = own(tree)
    assert (dm.class_names, dm.num_classes) == (["cat", "dog"], 2)
    assert names(dm) == PLAIN
    assert len(dm.test_files) == 2


@pytest.mark.parametrize("name", ["._0.png", ".DS_Store", ".hidden.png", "Thumbs.db", "desktop.ini"])
def test_hidden_files_are_ignored_without_a_warning(tree, name):
    for folder in (tree / "train", tree / "val", tree / "train" / "cat"):
        (folder / name).write_bytes(b"\0\5\26\7")
    assert names(own(tree)) == PLAIN


def test_a_class_with_hidden_files_only_has_no_images(tree):
    (tree / "val" / "cat" / "0.png").rename(tree / "val" / "cat" / "._0.png")
    with pytest.raises(FileNotFoundError, match=r"val .*cat "):
        own(tree)


# Links and special files.


def link(kind, tree):
    """Add links to the training set by which images get two labels."""
    cat, dog, outside = tree / "train" / "cat", tree / "train" / "dog", tree / "outside"
    (dog / "deep").mkdir()
    (dog / "0.png").rename(dog / "deep" / "0.png")
    outside.mkdir()
    Image.new("RGB", (8, 8)).save(outside / "0.png")
    if kind == "folder":
        (cat / "more").symlink_to("../dog")
    elif kind == "deeper folder":
        (cat / "more").symlink_to("../dog/deep")
    elif kind == "folder that holds it":
        dog.rename(outside / "dogs")
        dog.symlink_to(outside / "dogs")
        (cat / "more").symlink_to(outside)
    elif kind == "file":
        (cat / "more.png").symlink_to("../dog/deep/0.png")
    elif kind == "folder outside":
        (cat / "more").symlink_to(outside)
        (dog / "more").symlink_to(outside)
    elif kind == "file outside":
        (cat / "more.png").symlink_to(outside / "0.png")
        (dog / "more.png").symlink_to(outside / "0.png")


@pytest.mark.parametrize(
    ("kind", "link_and_owner"),
    [
        ("folder", "cat/more .* dog"),
        ("deeper folder", "cat/more .* dog"),
        ("folder that holds it", "cat/more .* dog"),
        ("file", r"cat/more\.png .* dog"),
        ("folder outside", "dog/more .* cat"),
        ("file outside", r"dog/more\.png .* cat"),
    ],
)
def test_a_link_to_images_of_another_class_is_told(tree, kind, link_and_owner):
    link(kind, tree)
    with pytest.warns(UserWarning, match=f"train/{link_and_owner}, which"):
        own(tree)


def test_links_to_images_of_one_class_are_not_told(tree):
    (tree / "outside").mkdir()
    Image.new("RGB", (8, 8)).save(tree / "outside" / "0.png")
    cat = tree / "train" / "cat"
    (cat / "more").symlink_to(tree / "outside")
    (cat / "again.png").symlink_to(tree / "outside" / "0.png")
    (cat / "own.png").symlink_to("0.png")
    (tree / "val" / "cat" / "train").symlink_to(cat)  # of the same class in another set
    assert len(names(own(tree))) == 9


def test_loops_of_links_end_and_bring_nothing_twice(tree):
    cat = tree / "train" / "cat"
    (cat / "loop").symlink_to(".")
    (cat / "up").symlink_to("..")  # would bring the other class
    (cat / "sub").mkdir()
    (cat / "sub" / "3.png").write_bytes((cat / "0.png").read_bytes())
    (cat / "sub" / "back").symlink_to("..")
    (cat / "twin").symlink_to("sub")
    assert names(own(tree)) == [*PLAIN[:3], "cat/sub/3.png", *PLAIN[3:]]


def test_a_link_from_a_set_to_itself_is_no_class(tree):
    for part in ("train", "val"):
        (tree / part / "loop").symlink_to(".")
        (tree / part / "up").symlink_to(tree)
        (tree / part / "self").symlink_to("self")
    with pytest.warns(UserWarning, match=r": 2, \S*train/self "):
        dm = own(tree)
    assert dm.class_names == ["cat", "dog"]
    assert names(dm) == PLAIN


def test_a_linked_class_its_folders_and_its_files_are_followed(tree):
    elsewhere = tree / "elsewhere" / "dogs"
    (tree / "elsewhere" / "others").mkdir(parents=True)
    save(tree / "elsewhere" / "others" / "0.png", NOISE)
    (tree / "train" / "dog").rename(elsewhere)
    (tree / "train" / "dog").symlink_to(elsewhere)
    (elsewhere / "up").symlink_to(tree / "train")
    (elsewhere / "holder").symlink_to("..")
    (tree / "train" / "cat" / "3.png").symlink_to(elsewhere / "0.png")
    with pytest.warns(UserWarning, match=r"cat/3\.png .* dog"):
        dm = own(tree)
    assert names(dm) == [*PLAIN[:3], "cat/3.png", *PLAIN[3:]]


def test_links_to_nothing_are_refused(tree):
    (tree / "train" / "cat" / "3.png").symlink_to("nothing.png")
    (tree / "train" / "dog" / "3.png").symlink_to("3.png")
    with pytest.raises(OSError, match=r" 2 files .*cat/3\.png .*dog/3\.png "):
        own(tree)


def test_a_pipe_is_no_image_and_is_not_opened(tree):
    os.mkfifo(tree / "train" / "cat" / "pipe.png")
    (tree / "train" / "cat" / "linked.png").symlink_to("pipe.png")
    (tree / "train" / "cat" / "null.png").symlink_to("/dev/null")
    with pytest.warns(UserWarning, match=r": 3, \S*cat/linked\.png "):
        dm = own(tree)
    assert names(dm) == PLAIN


def test_images_of_subfolders_come_in_the_order_of_their_folders(tree):
    cat = tree / "train" / "cat"
    for name in ("b", "a-x", "a"):
        (cat / name).mkdir()
        save(cat / name / "0.png", NOISE)
    expected = make_dataset(tree / "train", {"cat": 0, "dog": 1}, extensions=(".png",))
    assert files(own(tree)) == expected


# Faults.


def test_all_faults_are_one_report_before_training(tree):
    for i in range(150):  # so that several threads look
        shutil.copy(tree / "train" / "cat" / "2.png", tree / "train" / "dog" / f"more{i}.png")
    for path, kept in zip(sorted(tree.glob("*/*/*.png")), [0, 10, 30, 300, 900], strict=False):
        path.write_bytes(save(path, NOISE).read_bytes()[:kept])
    with pytest.raises(OSError, match=r"^[^\n]* 5 files [^\n]*$") as refused:
        own(tree)
    assert str(refused.value).count(".png (") == 3
    assert "cat/0.png (not BMP, DIB," in str(refused.value)


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".jpg", ".png", ".ppm", ".tif", ".webp"])
def test_a_truncated_image_is_reported_before_training(tree, suffix):
    path = save(tree / "val" / "dog" / f"x{suffix}", NOISE)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(OSError, match=rf"val/dog/x\{suffix} .*\("):
        own(tree)


def test_a_subfolder_that_cannot_be_listed_is_a_fault(tree, monkeypatch):
    def scandir(path):
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    listed = os.scandir
    (tree / "train" / "cat" / "closed").mkdir()
    monkeypatch.setattr(image_files.os, "scandir", scandir)
    with pytest.raises(OSError, match=r"cat/closed .*\(Permission denied\)"):
        own(tree)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_fails_later_is_named(tree, monkeypatch, num_workers):
    monkeypatch.setattr(image_files, "DECODED", 7)  # of 8
    path = save(tree / "val" / "dog" / "0.png", NOISE)
    path.write_bytes(path.read_bytes()[:-200])
    dm = own(tree, num_workers=num_workers)
    with pytest.raises(OSError, match=r"val/dog/0\.png [^\n]*$"):
        list(dm.test_dataloader())


def test_of_more_images_only_the_headers_are_read(tree, monkeypatch):
    decoded = set()
    load = ImageFile.ImageFile.load

    def counting(image):
        decoded.add(image.filename)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counting)
    own(tree)
    assert len(decoded) == 8
    decoded.clear()
    monkeypatch.setattr(image_files, "DECODED", 7)
    own(tree)
    assert not decoded
    (tree / "train" / "cat" / "0.png").write_text("no picture")
    with pytest.raises(OSError, match=r"cat/0\.png .*\(not BMP"):
        own(tree)


def test_a_deep_picture_reaches_the_batch_with_its_grey_levels(tree):
    for name in ("0.png", "1.png", "2.png"):
        (tree / "train" / "cat" / name).unlink()
    grey = np.full((8, 8), 100 * 257, np.uint16)
    save(tree / "train" / "cat" / "0.png", grey)
    batch = next(iter(own(tree).plain_train_dataloader()))
    assert torch.allclose(batch.x[batch.y == 0], torch.full((1, 3, 8, 8), 100 / 255))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_in_images_of_16_are_told_of_once(tree, bits):
    for path in sorted((tree / "train").rglob("*.png")):
        save(path, np.full((8, 8), 2**bits - 1, np.uint16))
    with pytest.warns(UserWarning, match="8 bits") as told:
        own(tree)
    assert len(told) == 1
    save(path, np.full((8, 8), 2**16 - 1, np.uint16))  # one that is bright shows their white
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own(tree)


def test_dark_images_of_8_bits_are_told_nothing_of(tree):
    for path in sorted((tree / "train").rglob("*.png")):
        save(path, np.full((8, 8), 3, np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own(tree)
