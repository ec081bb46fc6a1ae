"""Endings of the files that are taken for pictures and videos where a folder may hold others."""

PICTURES = frozenset({".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
VIDEOS = frozenset({".avi", ".mkv", ".mov", ".mp4", ".ts", ".webm"})
