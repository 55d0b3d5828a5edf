"""Endings of the names of files that hold an image or a recording."""

# fmt: off
IMAGE_ENDINGS = frozenset({
    ".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
    ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
})
AUDIO_ENDINGS = frozenset({
    ".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav",
})
# fmt: on
