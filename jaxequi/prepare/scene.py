"""The scene of 3DIEBench in Blender: a floor, a sun, a spot light, a camera and one object.

Settings are those of the reference's generator (facebookresearch/SIE, `data/main.py`) and of the
BlenderProc defaults under it, on Blender 4.2 to 5.x; the numbers are those of `data/raycast.py`,
which draws the same scene in closed form. Blender is imported when a `Scene` is made, and there
is one scene in a process.
"""

from __future__ import annotations

import colorsys
import contextlib
import io
import itertools
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxequi.data import decoding, raycast
from jaxequi.data.errors import DataError
from jaxequi.data.raycast import Parts
from jaxequi.errors import Refusal
from jaxequi.groups import quaternions
from jaxequi.prepare.models import Model

ENGINES = ("cycles", "eevee")
DEVICES = ("cpu", "cuda", "optix", "hip", "oneapi", "metal")

# Of the published plane, Eevee's shadow maps cannot resolve anything: all of it would be in shadow.
FLOOR_SIZE = {"cycles": 10_000.0, "eevee": 50.0}
SUN_ANGLE = 2 * raycast.SUN_HALF_ANGLE
SPOT_ANGLE = 2 * raycast.SPOT_HALF_ANGLE
NOISE_THRESHOLD = 0.01  # where a pixel is sampled no more
BOUNCES = {"max": 3, "diffuse": 3, "glossy": 0, "transmission": 0, "transparent_max": 8}
SEGMENTS, RINGS = 64, 32  # of the mesh of an ellipsoid

_Mesh = tuple[np.ndarray, list[tuple[int, ...]]]  # vertices, and faces by their numbers


class Scene:
    """The scene in Blender; there can be one in a process.

    Attributes:
      version: of Blender, such as "4.4.0".
    """

    def __init__(
        self,
        image_size: int = 256,
        *,
        engine: str = "cycles",
        samples: int = 100,
        device: str = "cpu",
        threads: int = 0,
    ):
        """Build all of the scene but the object.

        Args:
          image_size: height and width of the images.
          engine: one of `ENGINES`; eevee needs a graphics driver.
          samples: of a pixel, at most.
          device: one of `DEVICES`, for Cycles.
          threads: of the processor; 0 takes all.

        Raises:
          ValueError: Blender is not installed, or it lacks the engine or the device.
        """
        self._bpy = _import_blender()
        self.version: str = self._bpy.app.version_string.split()[0]
        self._bpy.ops.wm.read_factory_settings(use_empty=True)
        self._scene = self._bpy.context.scene
        self._objects: list[Any] = []
        self._set_up_image(image_size, threads)
        if engine == "cycles":
            self._use_cycles(samples, device)
        else:
            self._use_eevee(samples)
        self._add_world()
        self._floor = self._add_floor(FLOOR_SIZE[engine])
        self._add_camera()
        sun = self._add_light("SUN", raycast.SUN_IRRADIANCE)
        sun.data.angle = SUN_ANGLE  # as it is made, it shines straight down
        self._spot = self._add_light("SPOT", raycast.SPOT_WATTS)
        self._spot.data.spot_size = SPOT_ANGLE
        self._spot.data.spot_blend = raycast.SPOT_BLEND

    def load(self, model: Model) -> None:
        """Put an object in the place of the last, its bounding box centred at the origin.

        Raises:
          ValueError: a mesh file that Blender cannot read, or one without faces.
        """
        self._remove_objects()
        if isinstance(model.shape, pathlib.Path):
            self._objects = self._import(model.shape, rescale=not model.shapenet)
            if model.shapenet:
                self._invert_alpha()
        else:
            self._objects = self._build(model.shape)
        for each in self._objects:
            each.rotation_mode = "XYZ"

    def render(self, latent: Sequence[float] | np.ndarray) -> np.ndarray:
        """Render the object under seven latents (see `data/raycast.py`): u8[H, W, 3], RGB."""
        *angles, floor_hue, theta, phi, spot_hue = (float(number) for number in latent)
        for each in self._objects:
            each.rotation_euler = angles
        self._floor.inputs["Color"].default_value = (
            *colorsys.hsv_to_rgb(floor_hue, raycast.FLOOR_SATURATION, raycast.FLOOR_VALUE),
            1,
        )
        self._spot.data.color = colorsys.hsv_to_rgb(
            spot_hue, raycast.SPOT_SATURATION, raycast.SPOT_VALUE
        )
        self._place(self._spot, raycast.SPOT_DISTANCE, theta, phi)
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder, "image.png")
            self._scene.render.filepath = str(file)
            try:
                with _quiet():
                    self._bpy.ops.render.render(write_still=True)
            except RuntimeError as error:
                raise Refusal(f"Blender cannot render: {_reason(error)}") from error
            if not file.exists():
                raise Refusal("Blender rendered no image.")
            return np.asarray(decoding.decode(file.read_bytes()))

    def _set_up_image(self, image_size: int, threads: int) -> None:
        render = self._scene.render
        render.resolution_x = render.resolution_y = image_size
        render.resolution_percentage = 100
        render.image_settings.file_format = "PNG"
        render.image_settings.color_mode = "RGB"
        render.image_settings.color_depth = "8"
        if threads:
            render.threads_mode = "FIXED"
            render.threads = threads
        # Blender 4 has another default; the data set was made with 3.
        self._scene.view_settings.view_transform = "Filmic"
        self._scene.view_settings.look = "None"
        self._scene.view_settings.exposure = 0
        self._scene.view_settings.gamma = 1

    def _use_cycles(self, samples: int, device: str) -> None:
        self._scene.render.engine = "CYCLES"
        cycles = self._scene.cycles
        cycles.samples = samples
        cycles.use_adaptive_sampling = True
        cycles.adaptive_threshold = NOISE_THRESHOLD
        for kind, count in BOUNCES.items():
            setattr(cycles, f"{kind}_bounces", count)
        cycles.use_denoising = True
        cycles.denoiser = "OPENIMAGEDENOISE"
        cycles.denoising_input_passes = "RGB_ALBEDO_NORMAL"
        if device == "cpu":
            return
        preferences = self._bpy.context.preferences.addons["cycles"].preferences
        try:
            preferences.compute_device_type = device.upper()
        except TypeError as error:
            raise Refusal(f"this Blender cannot render on {device}.") from error
        preferences.refresh_devices()
        found = [each for each in preferences.devices if each.type == device.upper()]
        if not found:
            raise Refusal(f"Blender finds no {device} device; --device cpu needs none.")
        for each in preferences.devices:
            each.use = each in found
        cycles.device = "GPU"

    def _use_eevee(self, samples: int) -> None:
        version = self._bpy.app.version
        name = "BLENDER_EEVEE" if version >= (5, 0) else "BLENDER_EEVEE_NEXT"
        self._scene.render.engine = name
        self._scene.eevee.taa_render_samples = samples
        self._scene.eevee.use_raytracing = True  # light that the floor throws back

    def _add_world(self) -> None:
        world = self._bpy.data.worlds.new("world")
        self._use_nodes(world)
        background = world.node_tree.nodes["Background"]
        background.inputs["Color"].default_value = (*[raycast.SKY_RADIANCE] * 3, 1)
        self._scene.world = world

    def _add_floor(self, size: float) -> Any:
        """Add the plane; return the node of its colour."""
        reach, height = size / 2, raycast.FLOOR_HEIGHT
        corners = [(x * reach, y * reach, height) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        floor = self._add_mesh("floor", corners, [(0, 1, 2, 3)])
        material, diffuse = self._diffuse("floor")
        floor.data.materials.append(material)
        return diffuse

    def _add_camera(self) -> None:
        camera = self._bpy.data.objects.new("camera", self._bpy.data.cameras.new("camera"))
        camera.data.angle = raycast.FIELD_OF_VIEW
        self._scene.collection.objects.link(camera)
        self._scene.camera = camera
        self._place(camera, raycast.CAMERA_DISTANCE, raycast.CAMERA_POLAR, np.pi / 2)

    def _add_light(self, kind: str, energy: float) -> Any:
        light = self._bpy.data.objects.new(kind, self._bpy.data.lights.new(kind, kind))
        light.data.energy = energy
        self._scene.collection.objects.link(light)
        return light

    def _place(self, thing: Any, distance: float, theta: float, phi: float) -> None:
        """Put a camera or a light at spherical coordinates, aimed at the origin."""
        from mathutils import Vector  # comes with Blender

        outward = Vector((np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)))
        thing.location = distance * outward
        thing.rotation_euler = (-outward).to_track_quat("-Z", "Y").to_euler()

    def _use_nodes(self, thing: Any) -> None:
        if self._bpy.app.version < (5, 0):  # later ones always do
            thing.use_nodes = True

    def _diffuse(self, name: str) -> tuple[Any, Any]:
        """Make a material that is one Diffuse BSDF; return both."""
        material = self._bpy.data.materials.new(name)
        self._use_nodes(material)
        nodes = material.node_tree.nodes
        nodes.clear()
        diffuse = nodes.new("ShaderNodeBsdfDiffuse")
        output = nodes.new("ShaderNodeOutputMaterial")
        material.node_tree.links.new(diffuse.outputs[0], output.inputs["Surface"])
        return material, diffuse

    def _add_mesh(self, name: str, vertices: Any, faces: Any) -> Any:
        mesh = self._bpy.data.meshes.new(name)
        mesh.from_pydata(vertices, [], faces)
        thing = self._bpy.data.objects.new(name, mesh)
        self._scene.collection.objects.link(thing)
        return thing

    def _remove_objects(self) -> None:
        for each in self._objects:
            self._bpy.data.objects.remove(each)
        self._objects = []
        self._bpy.data.orphans_purge(do_recursive=True)

    def _build(self, parts: Parts) -> list[Any]:
        """Make an embedded object of meshes, painted by the formula of `raycast.Parts`."""
        built = []
        for i in range(len(parts.half)):
            if not parts.half[i].any():
                continue
            vertices, faces = part_mesh(Parts(*(field[i] for field in parts)), i)
            part = self._add_mesh(f"part {i}", vertices.tolist(), faces)
            if i < raycast.ELLIPSOIDS:
                part.data.shade_smooth()
            material, diffuse = self._diffuse(part.name)
            part.data.materials.append(material)
            nodes, link = material.node_tree.nodes, material.node_tree.links.new
            place = nodes.new("ShaderNodeTexCoord").outputs["Object"]
            fade = tuple(parts.fade[i].repeat(3))
            for operation, *numbers in (
                ("MULTIPLY_ADD", fade, tuple(parts.albedo[i])),
                ("MAXIMUM", (0, 0, 0)),
                ("MINIMUM", (1, 1, 1)),
            ):
                node = nodes.new("ShaderNodeVectorMath")
                node.operation = operation
                link(place, node.inputs[0])
                for slot, number in enumerate(numbers, 1):
                    node.inputs[slot].default_value = number
                place = node.outputs[0]
            link(place, diffuse.inputs["Color"])
            built.append(part)
        return built

    def _import(self, file: pathlib.Path, *, rescale: bool) -> list[Any]:
        """Read a mesh file; each mesh of it becomes an object with its own axes at the origin."""
        before = set(self._bpy.data.objects)
        read = {
            ".obj": self._bpy.ops.wm.obj_import,
            ".glb": self._bpy.ops.import_scene.gltf,
            ".ply": self._bpy.ops.wm.ply_import,
        }[file.suffix.lower()]
        try:
            with _quiet():
                read(filepath=str(file))
            reason = "no face was found in it"
        except RuntimeError as error:
            reason = _reason(error)
        self._bpy.context.view_layer.update()
        new = [each for each in self._bpy.data.objects if each not in before]
        self._objects = new  # so that whatever was read goes, should it be refused
        meshes = [each for each in new if each.type == "MESH" and len(each.data.polygons)]
        if not meshes:
            raise DataError(f"{file} cannot be read: {reason}.")
        places = [each.matrix_world.copy() for each in meshes]
        corners = []
        for each, place in zip(meshes, places):
            each.data = each.data.copy()  # two objects may share a mesh
            each.data.transform(place)
            flat = np.empty(3 * len(each.data.vertices), np.float32)
            each.data.vertices.foreach_get("co", flat)
            corners.append(flat.reshape(-1, 3))
        points = np.concatenate(corners)
        low, high = points.min(0), points.max(0)
        diagonal = float(np.linalg.norm(high - low))
        if not np.isfinite(diagonal) or diagonal == 0:
            raise DataError(f"{file} cannot be read: its bounding box is {low} to {high}.")
        for other in set(new) - set(meshes):
            self._bpy.data.objects.remove(other)
        for each, corner in zip(meshes, corners):
            moved = (corner - (low + high) / 2) / (diagonal if rescale else 1)
            each.data.vertices.foreach_set("co", moved.ravel())
            each.data.update()
            each.animation_data_clear()
            each.parent = None
            each.matrix_world.identity()
            self._show_vertex_colours(each.data)
        self._objects = meshes
        return meshes

    def _show_vertex_colours(self, mesh: Any) -> None:
        """Give a mesh without material one of its vertex colours; Blender leaves it white."""
        if mesh.materials or not mesh.color_attributes:
            return
        material, diffuse = self._diffuse(mesh.name)
        colour = material.node_tree.nodes.new("ShaderNodeVertexColor")
        colour.layer_name = mesh.color_attributes[0].name
        material.node_tree.links.new(colour.outputs["Color"], diffuse.inputs["Color"])
        mesh.materials.append(material)

    def _invert_alpha(self) -> None:
        """Turn alpha textures over: those of ShapeNet are dark where they are opaque.

        As BlenderProc's `ShapeNetLoader` does: the colours, not the alpha, of the texture count.
        """
        for material in {m for each in self._objects for m in each.data.materials if m}:
            nodes, links = material.node_tree.nodes, material.node_tree.links
            textures = [node for node in nodes if node.bl_idname == "ShaderNodeTexImage"]
            if len(textures) < 2:  # one that is both colour and alpha is right as it is
                continue
            alpha = [link for link in links if link.to_socket.name == "Alpha"]
            for texture, socket in [(link.from_node, link.to_socket) for link in alpha]:
                if texture in textures:
                    invert = nodes.new("ShaderNodeInvert")
                    links.new(texture.outputs["Color"], invert.inputs["Color"])
                    links.new(invert.outputs["Color"], socket)


def part_mesh(part: Parts, slot: int) -> _Mesh:
    """Make the mesh of one part of an embedded object.

    Args:
      part: the fields of that part alone.
      slot: its place among the parts, which tells ellipsoids from boxes.

    Returns:
      Vertices f64[V, 3] on the object's axes, and faces as tuples of their numbers, which run
      counter-clockwise as seen from outside.
    """
    unit, faces = _ball() if slot < raycast.ELLIPSOIDS else _cube()
    turn = quaternions.to_matrix(part.rotation.astype(np.float64))
    return (unit * part.half) @ turn.T + part.center, faces


def _cube() -> _Mesh:
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=3)))
    return corners, [
        (0, 1, 3, 2),
        (4, 6, 7, 5),
        (0, 4, 5, 1),
        (2, 3, 7, 6),
        (0, 2, 6, 4),
        (1, 5, 7, 3),
    ]


def _ball() -> _Mesh:
    polar = np.pi * np.arange(1, RINGS) / RINGS
    around = 2 * np.pi * np.arange(SEGMENTS) / SEGMENTS
    theta, phi = (grid.ravel() for grid in np.meshgrid(polar, around, indexing="ij"))
    rings = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1)
    north, south = len(rings), len(rings) + 1
    faces: list[tuple[int, ...]] = []
    for i in range(SEGMENTS):
        j = (i + 1) % SEGMENTS
        last = SEGMENTS * (RINGS - 2)
        faces += [(north, i, j), (south, last + j, last + i)]
        for first in range(0, last, SEGMENTS):
            below = first + SEGMENTS
            faces.append((first + i, below + i, below + j, first + j))
    return np.concatenate([rings, [[0, 0, 1], [0, 0, -1]]]), faces


def _import_blender() -> Any:
    """Import Blender as a module; its sound, of which there is none, complains at length."""
    try:
        with contextlib.redirect_stderr(io.StringIO()), _quiet():
            import bpy
    except ImportError as error:
        raise Refusal(
            f"Blender is not installed here ({error}): "
            'pip install -e ".[render]" with Python 3.11 or 3.13.'
        ) from error
    return bpy


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send to nowhere what Blender itself, not Python, writes to the standard output."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _reason(error: RuntimeError) -> str:
    """The last line of what an operator of Blender says; before it come tracebacks."""
    return str(error).strip().splitlines()[-1].removeprefix("Error: ").rstrip(".")
