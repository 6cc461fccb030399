"""Opens videos from anywhere, trusts none of them, and decodes only the frames that are asked for.

    path | bytes ──container (first bytes)──open_video──> Media (size, frames, fps) ──read_frames(indices)──> PIL RGB

Each container is opened with its own demuxer, chosen here by the file's first bytes: FFmpeg's own choice would also
take playlists, which name other files and addresses. A frame's place is its time: index i of a video of f frames a
second on average is what is on the screen i / f seconds after its beginning, which for a constant rate is frame i.
Reading ends after `Limits.patience` seconds, and anything wrong is a PumiceError of one line.
"""

from __future__ import annotations

import contextlib
import io
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from pumice.types import Media, PumiceError
from pumice.vision.media import Limits, check_file, head_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

READABLE = "MP4, MOV, WebM, MKV, AVI, MPEG, FLV, WMV or Ogg"

_SIGNATURES = {
    b"\x1aE\xdf\xa3": "matroska",
    b"FLV\x01": "flv",
    b"\0\0\x01\xba": "mpeg",
    b"0&\xb2u\x8ef\xcf\x11": "asf",
    b"OggS": "ogg",
}
_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")  # what an MP4 or QuickTime file may begin with
_STILLS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")  # pictures in an MP4 file's clothes
_TS_PACKET = 188

_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    -180: Image.Transpose.ROTATE_180,
    -90: Image.Transpose.ROTATE_270,
}
_REORDERED = 16  # frames by which decoding order may differ from the order on the screen, in H.264 and H.265
_JITTER = 0.02  # seconds by which timestamps of a constant rate may be off
_SLACK = 0.5  # seconds by which a file may be longer or shorter than its header says, or a tenth of it if that is less


def container(head: bytes) -> str | None:
    """FFmpeg's name of the demuxer for a file that begins with `head` (1 KB), None if it isn't a video."""
    if head[4:8] in _ATOMS:
        return None if head[8:12] in _STILLS else "mov"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    # GIF begins with TS's sync byte.
    if (
        len(head) > 2 * _TS_PACKET
        and not head.startswith(b"GIF8")
        and all(head[place] == 0x47 for place in (0, _TS_PACKET, 2 * _TS_PACKET))
    ):
        return "mpegts"
    return next((name for start, name in _SIGNATURES.items() if head.startswith(start)), None)


def open_video(name: str, source: str | bytes, limits: Limits) -> Media:
    """Media of a video file (path) or its bytes; the first frame is decoded, for its size and to see that it can be.

    Where the header doesn't say how many frames there are, the whole file is read through, undecoded.
    Raises PumiceError for what isn't a video that can be read within the limits.
    """
    if isinstance(source, str):
        check_file(source, name, limits.max_video_bytes)
    with _opened(name, source, limits) as opened:
        size, frames, seconds = _survey(opened, limits)
        nominal = float(opened.stream.average_rate or 0)
    if frames > limits.max_frames or seconds > limits.max_seconds:
        raise PumiceError(
            f"{name}: {frames:,} frames in {seconds:,.0f} seconds; at most {limits.max_frames:,} frames and "
            f"{limits.max_seconds:,} seconds are read"
        )
    # A nominal 30000/1001 is better than what rounded timestamps add up to, unless it is a mere guess.
    agrees = nominal > 0 and abs(frames / nominal - seconds) < _slack(seconds)
    fps = nominal if agrees else frames / seconds
    return Media(reference=source, size=size, kind="video", frames=frames, name=name, fps=fps)


def read_frames(media: Media, indices: Sequence[int], limits: Limits | None = None) -> Iterator[Image.Image]:
    """Frames of a video by rising index, RGB, upright, of `media.size`, one after the other; only they are kept.

    Raises PumiceError when the file is damaged or cut short before the last of them, or reading takes too long.
    """
    name = media.name or "video"
    early, late = min(0.5 / media.fps, _JITTER), 2 * _slack(media.frames / media.fps) + 2 / media.fps
    with _opened(name, media.reference, limits or Limits()) as opened:
        opened.load_index()
        coming = opened.frames()
        shown, following = None, next(coming, None)
        image, image_of = None, None
        for index in indices:
            moment = index / media.fps
            if following is not None and opened.jump(following.seconds, moment, media.fps):
                shown, following = None, next(coming, None)
            while following is not None and following.seconds < moment + early:
                shown, following = following, next(coming, None)
            chosen = shown or following  # what comes before the first frame that can be decoded is shown as that frame
            if chosen is None or (following is None and moment > chosen.seconds + late):
                raise opened.damaged(f"ends before {moment:.2f} seconds")
            if image is None or chosen is not image_of:
                image, image_of = _upright(chosen.frame, media.size), chosen
            yield image


def _slack(seconds: float) -> float:
    return min(_SLACK, 0.1 * seconds)


class _Timed(NamedTuple):
    """A decoded frame and its time since the beginning of the video."""

    seconds: float
    frame: VideoFrame


class _Opened:
    """An open file with its first video stream and the moment at which patience ends."""

    def __init__(self, name: str, file: InputContainer, stream: VideoStream, deadline: float, patience: float) -> None:
        self.name, self.file, self.stream = name, file, stream
        self.deadline, self.patience = deadline, patience
        self.unit = float(stream.time_base or 0)
        if not self.unit:
            raise self.damaged("no time base")
        self.origin = stream.start_time

    def packets(self, *streams: VideoStream) -> Iterator[Any]:
        for packet in self.file.demux(*streams):
            if time.monotonic() > self.deadline:
                raise _too_slow(self.name, self.patience)
            yield packet

    def decode(self, packet: Any, started: bool) -> list[VideoFrame]:
        """Frames of a packet. Those before the first key frame can't be decoded, which isn't a fault of the file."""
        try:
            return packet.decode()
        except ValueError:  # av.error.InvalidDataError
            if started:
                raise
            return []

    def frames(self) -> Iterator[_Timed]:
        """All frames from here on, in the order in which they are shown."""
        count, rate = 0, float(self.stream.average_rate or 25)
        for packet in self.packets(self.stream):
            for frame in self.decode(packet, count > 0):
                self.origin = frame.pts if self.origin is None else self.origin
                seconds = count / rate if frame.pts is None else (frame.pts - (self.origin or 0)) * self.unit
                count += 1
                yield _Timed(seconds, frame)

    def load_index(self) -> None:
        """Matroska keeps its index at the end of the file, and FFmpeg reads it when it seeks for the first time."""
        if "matroska" in self.file.format.name.split(","):
            self._seek(self.origin or 0)

    def jump(self, seconds: float, moment: float, fps: float) -> bool:
        """Go on at the last key frame before `moment`, if there is one after `seconds`. Without an index: never.

        Nor in MPEG program streams: a jump there lands inside of a frame, and FFmpeg gives the next one its time.
        """
        if self.file.format.name == "mpeg":
            return False
        index, start = self.stream.index_entries, self.origin or 0
        margin = _REORDERED / fps
        place = index.search_timestamp(int((moment - margin) / self.unit) + start, backward=True)
        if place < 0 or (index[place].timestamp - start) * self.unit <= seconds + margin:
            return False
        return self._seek(index[place].timestamp)

    def _seek(self, timestamp: int) -> bool:
        """Whether it worked; where it didn't, reading goes on from where it was."""
        from av.error import FFmpegError

        try:
            self.file.seek(timestamp, stream=self.stream)
        except FFmpegError:
            return False
        return True

    def damaged(self, reason: str) -> PumiceError:
        return PumiceError(f"{self.name}: damaged or cut short ({reason}); expected a whole {READABLE} video")


def _too_slow(name: str, patience: float) -> PumiceError:
    return PumiceError(
        f"{name}: reading it takes more than {patience:g} seconds; a shorter or smaller video, or an MP4 with more key "
        "frames, is faster"
    )


@contextlib.contextmanager
def _opened(name: str, source: str | bytes, limits: Limits) -> Iterator[_Opened]:
    """The file with its first video stream; any error of FFmpeg's inside becomes a PumiceError."""
    import av

    head = head_of(name, source)
    demuxer = container(head)
    if demuxer is None:
        raise PumiceError(f"{name}: not a video ({head[:16]!r}...); expected a {READABLE} video")
    deadline = time.monotonic() + limits.patience
    # An absolute path can't be taken for one of FFmpeg's addresses, such as concat: or http:.
    target = io.BytesIO(source) if isinstance(source, bytes) else str(Path(source).absolute())
    try:
        with av.open(target, "r", format=demuxer, timeout=limits.patience, metadata_errors="replace") as file:
            yield _Opened(name, file, _stream(name, file, limits), deadline, limits.patience)
    except PumiceError:
        raise
    except Exception as error:  # PyAV's own, and those of Python that it uses for FFmpeg's codes
        if time.monotonic() > deadline:  # FFmpeg, interrupted by `timeout`, may call that invalid data
            raise _too_slow(name, limits.patience) from None
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise PumiceError(f"{name}: damaged or cut short ({reason}); expected a whole {READABLE} video") from None


def _stream(name: str, file: InputContainer, limits: Limits) -> VideoStream:
    from av.stream import Disposition

    moving = [stream for stream in file.streams.video if not stream.disposition & Disposition.attached_pic]
    if not moving:
        raise PumiceError(f"{name}: holds no video stream; expected a {READABLE} video")
    stream = moving[0]
    decoder = stream.codec_context
    if decoder is None:
        raise PumiceError(f"{name}: its video codec isn't known; convert it to H.264")
    if decoder.width * decoder.height > limits.max_pixels or max(decoder.width, decoder.height) > limits.max_side:
        raise PumiceError(
            f"{name}: frames of {decoder.width}x{decoder.height} pixels; at most {limits.max_pixels:,} pixels and "
            f"{limits.max_side:,} a side are read"
        )
    # For frames that turn out larger than the header says; with room, since FFmpeg counts what it pads them with.
    decoder.options = {"max_pixels": str(2 * limits.max_pixels + 65536)}
    return stream


def _survey(opened: _Opened, limits: Limits) -> tuple[tuple[int, int], int, float]:
    """((width, height) upright, frames, seconds): from the header where it is consistent, else from all packets."""
    stream = opened.stream
    frames, seconds, rate = stream.frames, (stream.duration or 0) * opened.unit, float(stream.average_rate or 0)
    trusted = frames > 0 and seconds > 0 and rate > 0 and abs(frames / rate - seconds) <= max(1.0, 0.05 * seconds)
    size, found, first, last, whole, lasting = None, 0, math.inf, -math.inf, 0.0, 0.0
    for packet in opened.packets():
        at, unit = packet.pts if packet.pts is not None else packet.dts, float(packet.time_base or 0)
        start, length = (at or 0) * unit, (packet.duration or 0) * unit
        whole = max(whole, start + length)  # over all streams, as the header's length is
        if packet.stream.index != stream.index:
            continue
        if size is None:
            size = next((_upright_size(frame) for frame in opened.decode(packet, False)), None)
        if packet.size:  # the packet that flushes the decoder has none
            found, first, (last, lasting) = found + 1, min(first, start), max((last, lasting), (start, length))
        if found > limits.max_frames or (trusted and size is not None):
            break
    if size is None:
        raise opened.damaged("no frame can be decoded")
    if trusted:
        return size, frames, seconds
    if found <= limits.max_frames:
        _check_whole(opened, found, whole)
    spacing = (last - first) / (found - 1) if found > 1 else 0.0
    return size, found, last - first + (lasting or spacing or 1 / (rate or 25.0))


def _check_whole(opened: _Opened, frames: int, seconds: float) -> None:
    """Raises PumiceError when less was found than the header, as far as it says anything, has promised."""
    stream, file = opened.stream, opened.file
    length = (file.duration or 0) / 1_000_000
    missing = (stream.frames - frames) / float(stream.average_rate or 25)
    if missing > _slack(length) or length - seconds > _slack(length):
        promised = f"{stream.frames} frames" if stream.frames else f"{length:.2f} seconds"
        raise opened.damaged(f"{frames} frames in {seconds:.2f} seconds, its header says {promised}")


def _upright_size(frame: VideoFrame) -> tuple[int, int]:
    size = frame.width, frame.height
    return (size[1], size[0]) if abs(frame.rotation) == 90 else size


def _upright(frame: VideoFrame, size: tuple[int, int]) -> Image.Image:
    """A frame as RGB, turned as it is to be shown; one of another size (they may change on the way) as the first."""
    image, turn = frame.to_image(), _TURNS.get(frame.rotation)
    image = image.transpose(turn) if turn is not None else image
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
