"""Which names files of images have, and which files and folders are left behind by tools."""

#: The formats that are read, as Pillow calls them; its JPEG reader also reads MPO.
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
#: Suffixes of files that are read. The format is detected from the content, so a PNG may be called ``.jpg``.
READ = {
    ".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm",
    ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
#: Suffixes of other images, which are refused rather than passed over.
REFUSED = {
    ".arw", ".avif", ".avifs", ".bw", ".cr2", ".cur", ".dcm", ".dds", ".dng", ".emf", ".eps", ".exr", ".fits", ".fli",
    ".hdr", ".heic", ".heif", ".icb", ".icns", ".ico", ".im", ".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx", ".jxl",
    ".msp", ".nef", ".orf", ".pcd", ".pcx", ".psd", ".pxr", ".qoi", ".ras", ".raw", ".rgb", ".rgba", ".sgi", ".svg",
    ".tga", ".vda", ".vst", ".wmf", ".xbm", ".xpm",
}  # fmt: skip
#: What tools leave behind in folders, in small letters, besides names that begin with a point.
LEFT_BEHIND = {
    "$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini",  # Windows
    "__macosx", "network trash folder", "temporary items",  # macOS
    "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot",  # network storage
    "lost+found", "__pycache__",
}  # fmt: skip


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that tools leave behind, as ``.ipynb_checkpoints`` and ``@eaDir``."""
    return name.startswith(".") or name.lower() in LEFT_BEHIND
