"""What a simulation's cameras see: bit for bit what MuJoCo draws, in half the time."""

import os
import weakref
from collections.abc import Mapping

import numpy as np

SHOWN, HIDDEN = 1, 5  # geom groups: robosuite has all looks in 1, and MuJoCo shows none of 5
_CORNERS = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3, indexing="ij"), -1).reshape(-1, 3)


class Renderer:
    """Some cameras of a robosuite environment, in a GL context of their own.

    sim: the environment's; its reflections and multisampling are switched off (4 times faster).
    names: MuJoCo's name of each camera, by ours. image_size: height and width in pixels.
    Raises RuntimeError where no GL library is installed.
    """

    def __init__(self, sim, names: Mapping[str, str], image_size: int):
        sim.model.mat_reflectance[:] = 0
        sim.model.vis.quality.offsamples = 0
        try:
            self._context = _context(sim)
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            raise no_gl(error) from error
        self._size = image_size
        self._views = {name: _View(sim, camera) for name, camera in names.items()}
        # Not at the interpreter's end: EGL is terminated before it, and has freed everything.
        self._free = weakref.finalize(self, _free, self._context)
        self._free.atexit = False

    def render(self, name: str) -> np.ndarray:
        """(H, W, 3) uint8 RGB of what one of the cameras sees now."""
        context, view, size = self._context, self._views[name], self._size
        context.gl_ctx.make_current()  # another simulation's may be current
        with view:
            context.render(size, size, camera_id=view.camera)
        # OpenGL's rows run upwards.
        return np.ascontiguousarray(context.read_pixels(size, size)[::-1])

    def close(self) -> None:
        """Free the GL context. Closing twice is harmless."""
        self._free()


class _View:
    """Hides, while it is entered, what lies outside a camera's field of view.

    MuJoCo draws everything there is. Without a GPU that is most of the time of a step: of the
    Panda's 168 000 triangles the camera at its wrist sees 8 000. A box around each geom that lies
    wholly beyond one side of the field of view cannot have changed a pixel.
    """

    def __init__(self, sim, camera: str):
        self._model, self._data = sim.model, sim.data
        self.camera = sim.model.camera_name2id(camera)
        model = self._model
        # Planes are without end and have no bounding box.
        self._geoms = np.flatnonzero((model.geom_group == SHOWN) & (model.geom_rbound > 0))
        boxes = model.geom_aabb[self._geoms][:, None]
        self._corners = boxes[..., :3] + boxes[..., 3:] * _CORNERS  # (geoms, 8, 3), geom frames

    def __enter__(self) -> None:
        self._outside = self._geoms[self._is_outside()]
        self._model.geom_group[self._outside] = HIDDEN

    def __exit__(self, *_error) -> None:
        self._model.geom_group[self._outside] = SHOWN

    def _is_outside(self) -> np.ndarray:
        """(geoms,) bool. Images are square: the field of view is as wide as it is high."""
        data, camera = self._data, self.camera
        turned = self._corners @ data.geom_xmat[self._geoms].reshape(-1, 3, 3).swapaxes(1, 2)
        world = turned + data.geom_xpos[self._geoms][:, None]
        x, y, z = np.moveaxis(
            (world - data.cam_xpos[camera]) @ data.cam_xmat[camera].reshape(3, 3), -1, 0
        )
        # A camera looks along its -z. A little wider than it sees: rounding is to hide nothing.
        half = -z * np.tan(np.radians(self._model.cam_fovy[camera]) / 2) * 1.001 + 1e-4
        return np.any(
            [(x > half).all(1), (x < -half).all(1), (y > half).all(1), (y < -half).all(1)], 0
        )


def _context(sim):
    import mujoco
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    class Context(MjRenderContextOffscreen):
        """robosuite's, but for the way it ends: :func:`_free` ends it, with it current."""

        def __del__(self):
            pass

    context = Context(sim, device_id=-1)
    context.scn.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    context.vopt.geomgroup[0] = 0  # collision shapes
    return context


def _free(context) -> None:
    # Freed with another simulation's context current, it takes that one's objects, and the images
    # of the other simulation go wrong without an error.
    context.gl_ctx.make_current()
    context.con.free()
    context.gl_ctx.free()


def no_gl(error: Exception) -> RuntimeError:
    """What to raise where no GL library can be loaded."""
    from hapo_ros.doctor import GL_PACKAGES

    backend = os.environ.get("MUJOCO_GL", "")
    return RuntimeError(
        f"Images cannot be rendered: MUJOCO_GL={backend} finds no usable GL library ({error}). "
        f"Install one with `apt install {GL_PACKAGES}` and set MUJOCO_GL=egl, or unset MUJOCO_GL "
        "and run without cameras."
    )
