"""The file name endings of pictures and videos in folders that may hold other files."""

PICTURES = frozenset({".avif", ".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
VIDEOS = frozenset({".avi", ".mkv", ".mov", ".mp4", ".ts", ".webm"})
