"""Write TensorBoard event files."""

import json
import struct
import time as clock
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.event_file_writer import EventFileWriter


class TensorBoard:
    """Write values of a run to a folder that ``tensorboard --logdir`` shows.

    Values become float32. TensorBoard shows no HTML pages; `page` writes where the page is.

    Parameters
    ----------
    directory : str or os.PathLike
        Folder of the event files; made if it does not exist.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = str(directory)
        self._writer: EventFileWriter | None = None

    def _write(self, event: Event) -> None:
        """Write an event to the file, which the first event opens."""
        if self._writer is None:
            self._writer = EventFileWriter(self._directory)
            # Events of an earlier recording of the same steps are no longer shown.
            if event.HasField("summary") and event.step > 0:
                start = SessionLog(status=SessionLog.START)
                restart = Event(wall_time=event.wall_time, step=event.step)
                restart.session_log.CopyFrom(start)
                self._writer.add_event(restart)
        self._writer.add_event(event)

    def settings(self, values: Mapping[str, object]) -> None:
        """Write the settings as text.

        Parameters
        ----------
        values : mapping from str to object
            Settings by name.
        """
        if values:
            self._text("settings", f"```\n{json.dumps(values, indent=2)}\n```")

    def scalars(self, step: int, values: Mapping[str, float], *, time: float) -> None:
        """Write values of a step as one event.

        Parameters
        ----------
        step : int
            Optimizer step.
        values : mapping from str to float
            Values by tag.
        time : float
            Seconds since 1970.
        """
        parts = [
            Summary.Value(tag=name, simple_value=_float32(value))
            for name, value in values.items()
        ]
        self._write(Event(wall_time=time, step=step, summary=Summary(value=parts)))

    def figure(self, name: str, path: Path, *, step: int) -> None:
        """Write an image.

        Parameters
        ----------
        name : str
            Tag of the image.
        path : Path
            A PNG file.
        step : int
            Step of the image.
        """
        data = path.read_bytes()
        # A PNG file begins with 8 bytes, and the length and type of the header.
        width, height = struct.unpack(">II", data[16:24])
        image = Summary.Image(
            width=width, height=height, colorspace=4, encoded_image_string=data
        )
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._write(Event(wall_time=clock.time(), step=step, summary=summary))

    def page(self, name: str, path: Path) -> None:
        """Write where the page is.

        Parameters
        ----------
        name : str
            Tag of the text.
        path : Path
            The page.
        """
        self._text(name, f"`{path.resolve()}`")

    def _text(self, tag: str, text: str) -> None:
        metadata = SummaryMetadata(
            plugin_data=SummaryMetadata.PluginData(plugin_name="text")
        )
        tensor = TensorProto(dtype=DT_STRING, string_val=[text.encode()])
        value = Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
        self._write(Event(wall_time=clock.time(), summary=Summary(value=[value])))

    def close(self) -> None:
        """Write everything to the file, and close it."""
        if self._writer is not None:
            self._writer.close()


def _float32(value: float) -> float:
    """Return a value that float32 can hold: overflow becomes infinity."""
    try:
        return float(struct.unpack("f", struct.pack("f", value))[0])
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
