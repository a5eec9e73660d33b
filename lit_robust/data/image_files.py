"""Which files in class folders are images, whether they can be used, and how they are decoded."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

from lit_robust.data.image_names import FORMATS, READ, REFUSED, is_hidden

#: Pillow's modes that it converts to RGB without loss of grey levels.
CONVERTED = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
#: In a folder with at most this number of images, each is decoded before training; of more, the headers are read.
DECODED = 20_000

_FAULTS_NAMED = 3
_SLICE = 64  # images per task of a thread: a task for each of a million would take a gigabyte

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def class_folders(folder: Path) -> list[str]:
    """The names of a folder's subfolders, sorted, without hidden ones and links to a folder that holds them.

    Raises:
        FileNotFoundError: If there are none.
    """
    loops = {folder.resolve(), *folder.resolve().parents}
    try:
        names = [entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name)]
    except OSError:
        names = []
    if not (names := sorted(name for name in names if (folder / name).resolve() not in loops)):
        found = "has no class folders" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"{folder} {found}: it must hold one folder of images for each class.")
    return names


def decode(path: str) -> Image.Image:
    """The first frame of an image as RGB, turned upright by its EXIF orientation.

    Grey levels of 16 bits are scaled by their white; floats must be in [0, 1]. Transparency is dropped.

    Raises:
        OSError: If the file is not a readable image, or one that cannot be converted faithfully; it is named.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return _to_rgb(image)
    except Exception as error:  # Pillow raises many kinds for a broken file
        raise OSError(_sentence(path, _reason(error))) from error


class Findings:
    """What was found in class folders besides good images, for one report."""

    def __init__(self) -> None:
        self.faults: list[tuple[str, str]] = []
        self.unused: list[str] = []
        #: The classes that reach a real folder, with the link that leads there; None for no link.
        self._folders: dict[str, dict[str, str | None]] = {}
        #: The same of the real files that links lead to.
        self._linked: dict[str, dict[str, str | None]] = {}

    def images(self, folder: Path) -> list[str]:
        """Paths of the images below a class folder, sorted by their folder and then by name.

        Links are followed, but each real folder is entered once, and never one that holds the class folder.
        """
        own = os.path.realpath(folder)
        seen = {own, *map(str, Path(own).parents), *(os.path.realpath(parent) for parent in folder.absolute().parents)}
        images: list[tuple[str, str]] = []
        folders = [(str(folder), own, str(folder) if folder.is_symlink() else None)]
        while folders:
            here, real, link = folders.pop()
            self._folders.setdefault(real, {})[folder.name] = link
            try:
                entries = sorted(os.scandir(here), key=lambda entry: entry.name)
            except OSError as error:
                self.faults.append((here, _reason(error)))
                continue
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if not _is_folder(entry):
                    if self._is_image(entry):
                        images.append((here, entry.name))
                        if entry.is_symlink():
                            self._linked.setdefault(os.path.realpath(entry.path), {})[folder.name] = entry.path
                elif (real := os.path.realpath(entry.path)) not in seen:
                    seen.add(real)
                    folders.append((entry.path, real, link or (entry.path if entry.is_symlink() else None)))
        return [os.path.join(here, name) for here, name in sorted(images)]

    def shared(self) -> list[tuple[str, str]]:
        """Links in one class that lead to images of another, with that class; forgets what was reached."""
        shared: dict[str, str] = {}
        linked = {real: self._folders.get(os.path.dirname(real), {}) | by for real, by in self._linked.items()}
        for by in (*self._folders.values(), *linked.values()):
            owner = min(by, key=lambda name: (by[name] or "").count(os.sep))  # no link, else a link to a whole class
            shared |= {link: owner for name, link in by.items() if link and name != owner}
        self._folders, self._linked = {}, {}
        return sorted(shared.items())

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        suffix = os.path.splitext(entry.name)[1].lower()
        if suffix not in READ and suffix not in REFUSED:
            self.unused.append(entry.path)
        elif entry.is_symlink() and not os.path.exists(entry.path):
            self.faults.append((entry.path, "a link to a file that does not exist"))
        elif not entry.is_file():
            self.unused.append(entry.path)  # opening a pipe would wait for a writer
        elif suffix in REFUSED:
            self.faults.append((entry.path, f"{suffix} is not read, save it as PNG"))
        else:
            return True
        return False

    def check(self, base: Path, paths: Sequence[str]) -> None:
        """Open all images in threads, warn of unused files and of dark deep images, and refuse all faults.

        Args:
            base: The folder that the report names.
            paths: The images. Up to ``DECODED`` are decoded; of more, only headers, so dark ones are not reported.

        Raises:
            OSError: If there are faults, with their number and the first paths.
        """
        whole = len(paths) <= DECODED
        with ThreadPoolExecutor() as pool:
            slices = (paths[start : start + _SLICE] for start in range(0, len(paths), _SLICE))
            looks = list(pool.map(lambda part: _look(part, whole), slices))
        animated = [path for look in looks for path in look.animated]
        deep = [level for look in looks for level in look.deep]
        if self.unused:
            rank_zero_warn(f"{base}: files that are not used, as they are not images: {_count(self.unused)}.")
        if animated:
            rank_zero_warn(f"{base}: files with several frames, of which the first is used: {_count(animated)}.")
        if deep and max(deep) <= 64:  # of 255: 14 bits of 16 or fewer
            rank_zero_warn(
                f"{base}: the brightest pixel of all images with more than 8 bits per pixel ({len(deep)}) is "
                f"{max(deep) / 255:.1%} of their white: if they hold fewer bits, such as 12 of 16, scale them to white."
            )
        faults = [*self.faults, *(fault for look in looks for fault in look.faults)]
        if len(faults) == 1:
            raise OSError(_sentence(*faults[0]))
        if faults:
            named = ", ".join(f"{path} ({reason})" for path, reason in faults[:_FAULTS_NAMED])
            raise OSError(
                f"{base} has {len(faults)} files that are not readable images: repair or remove {named}"
                f"{' and the others' if len(faults) > _FAULTS_NAMED else ''}."
            )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # a link to itself makes is_dir raise; isdir asks the disk, which is needed for links only
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


class _Look(NamedTuple):
    """Faults with reasons, paths of files with several frames, and the maxima (of 255) of images of over 8 bits."""

    faults: list[tuple[str, str]]
    animated: list[str]
    deep: list[int]


def _look(paths: Sequence[str], whole: bool) -> _Look:
    look = _Look([], [], [])
    for path in paths:
        try:
            with Image.open(path, formats=FORMATS) as image:
                if getattr(image, "is_animated", False):
                    look.animated.append(path)
                if not whole:
                    _check_mode(image)
                elif (decoded := _to_rgb(image)) and _is_deep(image.mode):
                    look.deep.append(int(np.asarray(decoded).max()))
        except Exception as error:
            look.faults.append((path, _reason(error)))
    return look


def _to_rgb(image: Image.Image) -> Image.Image:
    _check_mode(image)
    image.load()  # turns a TIFF upright, and finds the EXIF data behind a PNG's pixels
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # EXIF data that cannot be read have no orientation
        orientation = None
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    if _is_deep(image.mode):
        # In mode I, Pillow holds 16 bits of other formats and 32 bits of TIFF, whose white is by custom that of 16.
        bits = min(16, _bits(image)) if isinstance(image, TiffImageFile) else 16
        wide = image.mode == "I" and isinstance(image, TiffImageFile)
        upright = _eight_bits(upright, 1 if image.mode == "F" else 2**bits - 1, wide)
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        upright = upright.convert("RGBA")  # Pillow warns of the direct way, which gives the same colours
    return upright.convert("RGB")


def _is_deep(mode: str) -> bool:
    """Whether Pillow holds more than 8 bits per pixel, which its conversion to RGB would clip."""
    return mode == "F" or mode.startswith("I")


def _check_mode(image: Image.Image) -> None:
    """Refuse images whose header leaves their grey levels or colours ambiguous."""
    if not _is_deep(image.mode):
        if image.mode not in CONVERTED:
            raise ValueError(f"mode {image.mode} cannot be converted faithfully, save it as RGB")
    elif isinstance(image, TiffImageFile):
        if image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
            raise ValueError(f"mode {image.mode} with 0 for white is not read, save it with 0 for black")
        if image.mode == "I" and _bits(image) == 16:
            raise ValueError("signed integers of 16 bits have no certain white, save them unsigned")


def _bits(image: TiffImageFile) -> int:
    return int(image.tag_v2.get(BITSPERSAMPLE, (1,))[0])


def _eight_bits(image: Image.Image, white: int, wide: bool) -> Image.Image:
    """Grey levels from 0 to ``white`` as the nearest of 8 bits; ``wide`` ones are stored in 32 bits."""
    levels = np.asarray(image, dtype=np.float32)
    low, high = levels.min(), levels.max()
    if not 0 <= low <= high <= white:  # also refuses NaN
        raise ValueError(f"mode {image.mode} with values from {low:g} to {high:g}, scale them to 0 to {white}")
    if wide and 0 < high < 256:
        raise ValueError(f"32 bits with values up to {high:g} may be 8 or 16 bits, save it as such")
    return Image.fromarray(np.rint(levels * (255 / white)).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()).rstrip(".") or type(error).__name__


def _sentence(path: str, reason: str) -> str:
    return f"{path} is not a readable image ({reason}): repair or remove it."


def _count(paths: list[str]) -> str:
    return f"{len(paths)}, {min(paths)} the first"
