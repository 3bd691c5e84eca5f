"""Small operations on a graph: what a fault needs, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.stages.base import MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


class NotHereError(Exception):
    """The graph has nothing that this fault could damage; a mistake of the catalogue."""


class Graph:
    """A graph that is being damaged."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model

    @classmethod
    def read(cls, directory: Path) -> Graph:
        """The graph in a stage's output directory."""
        return cls(onnx.load(directory / MODEL_FILE))

    def write(self, directory: Path) -> None:
        """Write it into an empty directory, as stages do."""
        (directory / MODEL_FILE).write_bytes(self.model.SerializeToString(deterministic=True))

    # --- looking ----------------------------------------------------------------------------

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs."""
        return [value.name for value in self.model.graph.input]

    @property
    def outputs(self) -> list[str]:
        """Names of the graph's outputs."""
        return [value.name for value in self.model.graph.output]

    def all(self, *ops: str) -> list[onnx.NodeProto]:
        """All nodes of these operators, in order."""
        return [node for node in self.model.graph.node if node.op_type in ops]

    def nth(self, op: str, place: int = 0) -> onnx.NodeProto:
        """One of them."""
        found = self.all(op)
        if not found or not -len(found) <= place < len(found):
            raise NotHereError(f"there is no {op} number {place}")
        return found[place]

    def maker(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a value; None for inputs and stored tensors."""
        return next((node for node in self.model.graph.node if name in node.output), None)

    def readers(self, name: str) -> list[onnx.NodeProto]:
        """The nodes that read a value."""
        return [node for node in self.model.graph.node if name in node.input]

    def initializers(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Stored tensors by name."""
        for tensor in self.model.graph.initializer:
            yield tensor.name, numpy_helper.to_array(tensor)

    def is_stored(self, name: str) -> bool:
        """Whether it is a stored tensor."""
        return any(tensor.name == name for tensor in self.model.graph.initializer)

    def find(self, *parts: str) -> list[str]:
        """Names of stored tensors that contain all of these parts, in order."""
        return [
            tensor.name
            for tensor in self.model.graph.initializer
            if all(part in tensor.name for part in parts)
        ]

    def get(self, name: str) -> NDArray[Any]:
        """A stored tensor, to keep."""
        for tensor in self.model.graph.initializer:
            if tensor.name == name:
                return numpy_helper.to_array(tensor).copy()
        node = self.maker(name)
        if node is not None and node.op_type == "Constant":
            (attribute,) = node.attribute
            value = helper.get_attribute_value(attribute)
            if attribute.name == "value":
                return numpy_helper.to_array(value).copy()
            return np.asarray(value)
        raise NotHereError(f"`{name}` is not stored")

    # --- changing ---------------------------------------------------------------------------

    def put(self, name: str, array: NDArray[Any]) -> str:
        """Replace or add a stored tensor."""
        # `ascontiguousarray` would make a list of one number of a number.
        new = numpy_helper.from_array(np.asarray(array, order="C"), name)
        for tensor in self.model.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(new)
                return name
        node = self.maker(name)
        if node is not None:  # a Constant
            self.model.graph.node.remove(node)
        self.model.graph.initializer.append(new)
        return name

    def change(self, name: str, how: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Replace a stored tensor by something made of it, of the same type."""
        before = self.get(name)
        after = how(before.copy()).astype(before.dtype)
        if np.array_equal(before, after):
            raise NotHereError(f"`{name}` is as it was")
        self.put(name, after)

    def redirect(self, old: str, new: str, but: Sequence[onnx.NodeProto] = ()) -> None:
        """Make all that reads a value read another one; a graph's output keeps its name."""
        spared = {id(node) for node in but}
        count = 0
        for node in self.model.graph.node:
            if id(node) in spared or new in node.output:
                continue
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = new
                    count += 1
        if old in self.outputs:
            self.insert("Identity", [new], output=f"{old}__kept")
            maker = self.maker(old)
            assert maker is not None
            place = list(maker.output).index(old)
            maker.output[place] = f"{old}__unused"
            kept = self.maker(f"{old}__kept")
            assert kept is not None
            kept.output[0] = old
            count += 1
        if not count:
            raise NotHereError(f"nothing reads `{old}`")

    def insert(
        self,
        op: str,
        inputs: Sequence[str],
        *,
        output: str = "",
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node where everything that it reads is there; the name of its output."""
        graph = self.model.graph
        output = output or f"damage_{len(graph.node)}"
        node = helper.make_node(
            op, list(inputs), [output], name=f"{output}_node", domain=domain, **attributes
        )
        made_at = {name: place for place, made in enumerate(graph.node) for name in made.output}
        place = max((made_at.get(name, -1) for name in inputs), default=-1) + 1
        graph.node.insert(place, node)
        return output

    def after(self, name: str, op: str, *others: str, **attributes: Any) -> str:
        """Put a node behind a value, so that all who read the value read its result."""
        readers = self.readers(name)
        made = self.insert(op, [name, *others], **attributes)
        for node in readers:
            for place, read in enumerate(node.input):
                if read == name:
                    node.input[place] = made
        if not readers:
            raise NotHereError(f"nothing reads `{name}`")
        return made

    def before_output(self, output: str) -> str:
        """Give a graph's output another maker to come: the name of what was it so far."""
        maker = self.maker(output)
        assert maker is not None, output
        inner = f"{output}__inner"
        maker.output[list(maker.output).index(output)] = inner
        for node in self.readers(output):
            for place, name in enumerate(node.input):
                if name == output:
                    node.input[place] = inner
        return inner

    def attribute(self, node: onnx.NodeProto, name: str, value: Any) -> None:
        """Set an attribute of a node."""
        for attribute in node.attribute:
            if attribute.name == name:
                node.attribute.remove(attribute)
                break
        node.attribute.append(helper.make_attribute(name, value))

    def sort(self) -> None:
        """Put every node behind the nodes that it reads, and leave the order otherwise."""
        waiting = list(self.model.graph.node)
        makers = {name for node in waiting for name in node.output}
        made: set[str] = set()
        done: list[onnx.NodeProto] = []
        while waiting:
            ready = next(
                node for node in waiting if all(n in made or n not in makers for n in node.input)
            )
            waiting = [node for node in waiting if node is not ready]
            made.update(ready.output)
            done.append(ready)
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in done]
        del self.model.graph.node[:]
        self.model.graph.node.extend(copies)
