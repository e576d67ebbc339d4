"""Images of a simulation with what is out of view left out, beside everything drawn.

    python benchmarks/rendering.py

Both draw the same scenes of the same episode, in turns; that the images are equal is checked.
"""

import argparse
import time
from unittest import mock

import numpy as np

from hapo_ros.sim import rendering
from hapo_ros.sim.environment import ACTION_NAMES, Simulation
from hapo_ros.sim.tasks import get_task


def drawn(simulation: Simulation, camera: str) -> tuple[float, np.ndarray]:
    """Seconds, and the image."""
    began = time.perf_counter()
    image = simulation.render(camera)
    return time.perf_counter() - began, image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--image-size", type=int, default=84)
    arguments = parser.parse_args()
    simulation = Simulation(get_task("Lift"), arguments.image_size)
    simulation.reset(0)
    rng = np.random.default_rng(0)
    nothing = mock.patch.object(rendering._View, "_is_outside", lambda view: slice(0))
    took = {camera: ([], []) for camera in simulation.cameras}
    for _ in range(arguments.steps):
        simulation.step(rng.uniform(-1, 1, len(ACTION_NAMES)), images=False)
        for camera, (culled, everything) in took.items():
            seconds, image = drawn(simulation, camera)
            culled.append(seconds)
            with nothing:
                seconds, whole = drawn(simulation, camera)
            everything.append(seconds)
            if not np.array_equal(image, whole):
                raise SystemExit(f"The images of {camera} differ.")
    for camera, (culled, everything) in took.items():
        fast, slow = (1e3 * float(np.median(each)) for each in (culled, everything))
        print(f"{camera:10}  {fast:5.1f} ms, everything drawn {slow:5.1f} ms: {slow / fast:.1f} x")
    simulation.close()


if __name__ == "__main__":
    main()
