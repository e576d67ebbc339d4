"""Images of a robot's cameras -> what policy and recorder see: RGB, cropped, of one size."""

import numpy as np

from hapo_ros.robots.config import CameraConfig

# Encoding -> bytes a pixel, and OpenCV's conversion to RGB (None: it is RGB). OpenCV names a Bayer
# pattern by the second row's second and third pixel: its BG is everyone's RGGB.
ENCODINGS = {
    "rgb8": (3, None),
    "bgr8": (3, "COLOR_BGR2RGB"),
    "8UC3": (3, "COLOR_BGR2RGB"),
    "rgba8": (4, "COLOR_RGBA2RGB"),
    "bgra8": (4, "COLOR_BGRA2RGB"),
    "mono8": (1, "COLOR_GRAY2RGB"),
    "8UC1": (1, "COLOR_GRAY2RGB"),
    "yuv422": (2, "COLOR_YUV2RGB_UYVY"),
    "uyvy": (2, "COLOR_YUV2RGB_UYVY"),
    "yuv422_yuy2": (2, "COLOR_YUV2RGB_YUY2"),
    "yuyv": (2, "COLOR_YUV2RGB_YUY2"),
    "bayer_rggb8": (1, "COLOR_BayerBG2RGB"),
    "bayer_bggr8": (1, "COLOR_BayerRG2RGB"),
    "bayer_gbrg8": (1, "COLOR_BayerGR2RGB"),
    "bayer_grbg8": (1, "COLOR_BayerGB2RGB"),
}


def picture(message, camera: CameraConfig) -> np.ndarray:
    """(h, w, 3) uint8 RGB of a camera's message, cropped and resized to ``camera.size``.

    message: sensor_msgs/Image, or CompressedImage where ``camera.compressed``. Raises ValueError
    with a sentence for one that is malformed, of an unknown encoding, or not of ``camera.source``.
    """
    image = decompressed(message) if camera.compressed else rgb_from(message)
    if image.shape[:2] != camera.source:
        height, width = camera.source
        raise ValueError(
            f"its images are {image.shape[0]} x {image.shape[1]}, and the robot's file says "
            f"{height} x {width} (source): set the camera's driver to that, or mend the file"
        )
    return fitted(image, camera.size, camera.crop)


def rgb_from(message) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a sensor_msgs/Image in one of ``ENCODINGS``. Raises ValueError."""
    import cv2

    encoding = message.encoding
    if encoding not in ENCODINGS:
        raise ValueError(
            f"the image encoding {encoding!r} is none of {', '.join(ENCODINGS)}; have the camera's "
            "driver publish one of them"
        )
    channels, conversion = ENCODINGS[encoding]
    height, width, step = int(message.height), int(message.width), int(message.step)
    data = np.asarray(message.data, np.uint8)
    if 0 in (height, width) or step < channels * width or data.size != height * step:
        raise ValueError(
            f"a {encoding} image of {height} x {width} in rows of {step} bytes has {data.size} "
            "bytes"
        )
    pixels = data.reshape(height, step)[:, : channels * width]
    if channels > 1:
        pixels = pixels.reshape(height, width, channels)
    if conversion is None:
        return np.ascontiguousarray(pixels)
    if (channels == 2 or encoding.startswith("bayer")) and (height % 2 or width % 2):
        raise ValueError(f"a {encoding} image of {height} x {width} has an odd number of pixels")
    return cv2.cvtColor(np.ascontiguousarray(pixels), getattr(cv2, conversion))


def decompressed(message) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a sensor_msgs/CompressedImage (JPEG or PNG). Raises ValueError."""
    import cv2

    data = np.asarray(message.data, np.uint8)
    if "compresseddepth" in message.format.lower():
        raise ValueError(f"a compressed image of format {message.format!r} is depth, not colour")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error as error:
        raise ValueError(f"{data.size} bytes are no image: {error.err}") from error
    if image is None:
        raise ValueError(f"{data.size} bytes of format {message.format!r} are no image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def fitted(image: np.ndarray, size, crop=None) -> np.ndarray:
    """The (H, W, 3) image, cropped to (top, left, height, width) and resized to (height, width).

    By averaging areas, which a policy's training images of another resolution are nearest to. The
    crop is inside the image.
    """
    if crop is not None:
        top, left, height, width = crop
        image = image[top : top + height, left : left + width]
    if image.shape[:2] != tuple(size):
        import cv2

        image = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image)
