"""The ROS-free install (see pyproject.toml): where the package's data comes from.

The interfaces, config/ and models/ lie beside hapo_ros/ in the checkout, where ROS wants them, and
inside the package once installed; hapo_ros.resources finds them in both. nodes/ needs the generated
messages, which only the CMake build makes, so it stays out.
"""

from setuptools import find_packages, setup

DATA = {
    "hapo_ros.interfaces.msg": "msg",
    "hapo_ros.interfaces.srv": "srv",
    "hapo_ros.interfaces.action": "action",
    "hapo_ros.config": "config",
    "hapo_ros.models": "models",
}

setup(
    packages=find_packages(include=["hapo_ros", "hapo_ros.*"], exclude=["hapo_ros.nodes*"])
    + list(DATA),
    package_dir={"": ".", **DATA},
    package_data={"hapo_ros": ["**/*"], **{package: ["**/*"] for package in DATA}},
    exclude_package_data={"": ["__pycache__/*", ".gitkeep"], "hapo_ros": ["nodes/*"]},
)
