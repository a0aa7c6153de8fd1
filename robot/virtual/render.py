"""Cheap software rendering of the scene: one off-screen context, no shadows, no multisampling, thinned meshes.

The meshes of the arm have 350,000 triangles: 25 ms a frame on a CPU. Merged on a 3 mm grid they cost 3 to 4 ms, and a
128 x 128 camera cannot tell. All calls from one thread (GL contexts belong to a thread). Not for physics.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0d.errors import RobotError

CELL_M = 0.003


def _thin(vertices: NDArray[Any], faces: NDArray[Any], cell: float) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Merge vertices by grid cell; give moved vertices, the faces left (rows are indices) and their flat normals."""
    _, inverse = np.unique(np.floor(vertices / cell).astype(np.int64), axis=0, return_inverse=True)
    inverse = inverse.ravel()
    count = int(inverse.max()) + 1
    size = np.bincount(inverse, minlength=count)[:, None]
    mean = np.stack([np.bincount(inverse, vertices[:, d], count) for d in range(3)], axis=1) / size
    keeper = np.full(count, -1, dtype=np.int64)
    keeper[inverse[::-1]] = np.arange(len(inverse))[::-1]
    moved = vertices.copy()
    moved[keeper] = mean
    left = keeper[inverse[faces]]
    left = left[(left[:, 0] != left[:, 1]) & (left[:, 1] != left[:, 2]) & (left[:, 0] != left[:, 2])]
    left = left[np.unique(np.sort(left, axis=1), axis=0, return_index=True)[1]]
    corner = moved[left]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    solid = length[:, 0] > 1e-12
    return moved, left[solid], normal[solid] / length[solid]


def drawing_model(model: Any, cell: float = CELL_M) -> Any:
    """A copy of the model whose meshes are thinned for drawing. Flat normals: the parts are printed and mechanical."""
    out = copy.copy(model)
    for k in range(out.nmesh):
        v0, vn, f0, fn = (int(a[k]) for a in (out.mesh_vertadr, out.mesh_vertnum, out.mesh_faceadr, out.mesh_facenum))
        n0, nn = int(out.mesh_normaladr[k]), int(out.mesh_normalnum[k])
        vertices, faces, normals = _thin(out.mesh_vert[v0 : v0 + vn], out.mesh_face[f0 : f0 + fn], cell)
        if not 0 < len(faces) <= nn:
            continue
        out.mesh_vert[v0 : v0 + vn] = vertices
        out.mesh_face[f0 : f0 + len(faces)] = faces
        out.mesh_normal[n0 : n0 + len(faces)] = normals
        out.mesh_facenormal[f0 : f0 + len(faces)] = np.arange(len(faces))[:, None]
        out.mesh_facenum[k] = len(faces)
    return out


class Painter:
    """Draws RGB frames of a scene. Made, used and closed by the same thread."""

    def __init__(self, model: Any, max_height: int, max_width: int) -> None:
        import mujoco

        self._mujoco = mujoco
        self.height, self.width = max_height, max_width
        self._model = model
        try:
            self._gl: Any = mujoco.GLContext(max_width, max_height)
            self._gl.make_current()
        except Exception as exc:
            raise RobotError(
                f"cameras of the virtual bench need OpenGL and there is none: {exc}",
                "apt install libegl1 libgl1-mesa-dri, or set MUJOCO_GL=osmesa",
            ) from exc
        drawn = drawing_model(model)
        drawn.vis.global_.offwidth, drawn.vis.global_.offheight = max_width, max_height
        drawn.vis.quality.offsamples = 0
        drawn.vis.quality.shadowsize = 1
        self._context: Any = mujoco.MjrContext(drawn, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        for flag in ("SHADOW", "REFLECTION", "SKYBOX", "HAZE", "FOG"):
            self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self._option = mujoco.MjvOption()

    def draw(self, data: Any, camera: Any, height: int, width: int) -> NDArray[np.uint8]:
        """One frame (height, width, 3) uint8 of the state in `data`."""
        m = self._mujoco
        m.mjv_updateScene(self._model, data, self._option, None, camera, m.mjtCatBit.mjCAT_ALL.value, self._scene)
        pixels = np.empty((height, width, 3), dtype=np.uint8)
        viewport = m.MjrRect(0, 0, width, height)
        m.mjr_render(viewport, self._scene, self._context)
        m.mjr_readPixels(pixels, None, viewport, self._context)
        return np.ascontiguousarray(pixels[::-1])

    def close(self) -> None:
        """Free the context while the interpreter is whole; left to its end, mujoco prints exceptions."""
        if self._context is not None:
            self._context.free()
            self._gl.free()
            self._context = self._gl = None
