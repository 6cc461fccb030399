"""Videos that are whole, odd, damaged or hostile: which frames come out, and what becomes of their features."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import TILE
from PIL import Image

from pumice.model.connectors import pool
from pumice.model.merge import merge_views
from pumice.types import Media, PumiceError
from pumice.vision.frames import ONEVISION_VIDEO, VideoPolicy, video_layout
from pumice.vision.kinds import open_media
from pumice.vision.media import Limits
from pumice.vision.pixels import frame_tiles
from pumice.vision.video import container, open_video, read_frames

SIZE = (64, 48)
LEVELS = 31


def film(
    path: Path,
    frames: int = 30,
    codec: str = "mpeg4",
    rate: Fraction | int = 25,
    gop: int = 12,
    milliseconds: list[int] | None = None,
    rotation: int = 0,
    size: tuple[int, int] = SIZE,
    **options: Any,
) -> Path:
    """A video whose frame i is grey of a level that tells i (modulo 31), with a red corner in the upper left."""
    with av.open(str(path), "w", **options) as file:
        stream: Any = file.add_stream(codec, rate=rate, options={"b": "2000000"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = gop
        if rotation:
            stream.set_display_rotation(rotation)
        unit = Fraction(1, 1000) if milliseconds else 1 / Fraction(rate)
        if milliseconds:
            stream.codec_context.time_base = unit
        for i, at in enumerate(milliseconds or range(frames)):
            pixels = np.full((size[1], size[0], 3), 8 * (i % LEVELS) + 4, np.uint8)
            pixels[: size[1] // 4, : size[0] // 4] = (255, 0, 0)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = at, unit
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def opened(path: Path, **limits: Any) -> Media:
    return open_video(path.name, str(path), Limits(**limits))


def seen(media: Media, indices: list[int], **limits: Any) -> list[int]:
    """Which frames came out, by their grey."""
    images = list(read_frames(media, indices, Limits(**limits)))
    assert all(image.mode == "RGB" and image.size == media.size for image in images)
    return [round((int(np.asarray(image)[-4, -4].mean()) - 4) / 8) for image in images]


def error_of(path: Path, indices: list[int] | None = None, **limits: Any) -> str:
    """The error of opening a file, or of reading frames of it."""

    def read() -> None:
        media = opened(path, **limits)
        seen(media, indices if indices is not None else [0, media.frames - 1], **limits)

    with pytest.raises(PumiceError) as caught:
        read()
    text = str(caught.value)
    assert "\n" not in text
    assert path.name in text
    return text


def part(path: Path, share: float, to: Path) -> Path:
    data = path.read_bytes()
    to.write_bytes(data[: int(len(data) * share)])
    return to


CONTAINERS = [
    ("a.mp4", "mpeg4"),
    ("a.mp4", "libx264"),
    ("a.mov", "mpeg4"),
    ("a.mkv", "libx264"),
    ("a.webm", "libvpx"),
    ("a.avi", "mpeg4"),
    ("a.flv", "flv1"),
    ("a.ts", "mpeg2video"),
    ("a.mpg", "mpeg1video"),
]


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_frames_are_found_in_every_container(name, codec, tmp_path):
    path = film(tmp_path / name, 100, codec)
    media = opened(path)
    assert (media.size, media.frames, media.kind) == (SIZE, 100, "video")
    assert media.fps == pytest.approx(25.0)
    for indices in ([0], [99], list(range(100)), [0, 0, 17, 17, 50, 98, 99], [3, 40, 41, 90]):
        assert seen(media, indices) == [index % LEVELS for index in indices]


@pytest.mark.parametrize(("name", "codec"), CONTAINERS)
def test_kind_is_told_by_content_not_name(name, codec, tmp_path):
    path = film(tmp_path / name, 12, codec)
    disguised = tmp_path / "photo.png"
    disguised.write_bytes(path.read_bytes())
    data = path.read_bytes()
    for reference in (path, str(path), disguised, data):
        (media,) = open_media(reference)
        assert (media.kind, media.frames) == ("video", 12)
        assert seen(media, [0, 5, 11]) == [0, 5, 11]


def test_frames_between_key_frames_that_are_far_apart(tmp_path):
    path = film(tmp_path / "long.mp4", 600, "libx264", gop=250)
    media = opened(path)
    assert seen(media, [0, 100, 249, 251, 499, 501, 599]) == [i % LEVELS for i in (0, 100, 249, 251, 499, 501, 599)]


def test_an_index_spares_most_of_the_decoding(tmp_path, monkeypatch):
    from pumice.vision.video import _Opened

    decoded = []
    real = _Opened.decode
    monkeypatch.setattr(_Opened, "decode", lambda *given: decoded.append(1) or real(*given))
    for name in ("a.mp4", "a.mkv"):
        media = opened(film(tmp_path / name, 1000, "libx264", gop=20))
        decoded.clear()
        assert seen(media, [0, 500, 999]) == [0, 500 % LEVELS, 999 % LEVELS]
        assert len(decoded) < 200


def test_a_varying_rate_shows_what_is_on_the_screen(tmp_path):
    """Eight frames in 3.12 seconds: index i is the frame shown i * 0.39 seconds after the beginning."""
    at = [0, 40, 80, 1000, 1040, 3000, 3040, 3080]
    for name in ("a.mp4", "a.mkv"):
        media = opened(film(tmp_path / name, milliseconds=at, codec="libx264"))
        assert media.frames == 8
        assert media.frames / media.fps == pytest.approx(3.12, abs=0.04)
        expected = [sum(t <= i * 390 for t in at) - 1 for i in range(8)]
        assert expected == [0, 2, 2, 4, 4, 4, 4, 4]
        assert seen(media, list(range(8))) == expected


@pytest.mark.parametrize(("rotation", "corner"), [(90, (4, -4)), (-90, (-4, 4)), (180, (-4, -4)), (0, (4, 4))])
def test_rotated_videos_stand_upright(rotation, corner, tmp_path):
    """Counter-clockwise by 90 degrees the upper left corner goes to the lower left."""
    media = opened(film(tmp_path / "a.mp4", rotation=rotation))
    assert media.size == (SIZE if rotation in (0, 180) else SIZE[::-1])
    (image,) = read_frames(media, [3])
    assert image.size == media.size
    x, y = corner
    red = np.asarray(image)[y, x]
    assert red[0] > 200
    assert red[2] < 80


def test_one_frame_and_very_slow(tmp_path):
    one = opened(film(tmp_path / "one.mp4", 1))
    assert (one.frames, seen(one, [0, 0, 0])) == (1, [0, 0, 0])
    still = opened(film(tmp_path / "one.mkv", 1))
    assert (still.frames, seen(still, [0])) == (1, [0])
    for name in ("slow.mp4", "slow.mkv", "slow.avi"):
        slow = opened(film(tmp_path / name, 5, rate=Fraction(1, 4)))
        assert slow.fps == pytest.approx(0.25)
        assert seen(slow, [0, 1, 2, 3, 4]) == [0, 1, 2, 3, 4]


def test_sound_does_not_matter(tmp_path):
    path = film(tmp_path / "mute.mkv", 25)
    with av.open(str(path)) as source, av.open(str(tmp_path / "a.mkv"), "w") as target:
        video, sound = target.add_stream_from_template(source.streams.video[0]), target.add_stream("aac", rate=8000)
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                target.mux(packet)
        for start in range(0, 8000 * 3, 1024):  # three seconds, two more than there are pictures
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 8000, start
            target.mux(sound.encode(frame))
        target.mux(sound.encode(None))
    media = opened(tmp_path / "a.mkv")
    assert media.frames == 25
    assert media.fps == pytest.approx(25.0)
    assert seen(media, [0, 12, 24]) == [0, 12, 24]


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp4"), "w") as file:
        stream = file.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    assert "holds no video stream" in error_of(tmp_path / "a.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_file_that_begins_between_key_frames(name, tmp_path):
    """Cut at packet 20 of 100, key frames every 12: what can't be decoded is shown as the first that can."""
    path = film(tmp_path / f"whole-{name}", 100, "libx264", gop=12)
    with av.open(str(path)) as source, av.open(str(tmp_path / name), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.dts is not None):
            if number >= 20:
                packet.stream = stream
                target.mux(packet)
    media = opened(tmp_path / name)
    assert 76 <= media.frames <= 80
    found = seen(media, [0, media.frames - 1])
    assert found[0] in range(20, 26)
    assert found[1] == 99 % LEVELS


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.mov", "a.webm"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6])
def test_files_that_are_cut_short(name, share, tmp_path):
    codec = "libvpx" if name.endswith("webm") else "libx264"
    path = film(tmp_path / f"whole-{name}", 150, codec)
    text = error_of(part(path, share, tmp_path / name))
    assert "damaged or cut short" in text or "not a video" in text


def test_a_file_that_is_cut_short_behind_its_header(tmp_path):
    """An MP4 with its header in front is opened without a complaint, and fails where its frames end."""
    path = film(tmp_path / "whole.mp4", 300, "libx264", container_options={"movflags": "faststart"})
    cut = part(path, 0.6, tmp_path / "a.mp4")
    media = opened(cut)
    assert media.frames == 300
    assert seen(media, [0, 50, 100]) == [i % LEVELS for i in (0, 50, 100)]
    assert "damaged or cut short" in error_of(cut)


def test_a_stream_without_a_length_is_what_there_is_of_it(tmp_path):
    path = film(tmp_path / "whole.ts", 100, "mpeg2video")
    media = opened(part(path, 0.5, tmp_path / "a.ts"))
    assert 30 < media.frames < 70
    assert len(seen(media, [0, media.frames - 1])) == 2


def test_damage_within(tmp_path):
    path = film(tmp_path / "whole.mp4", 100, "libx264")
    data = bytearray(path.read_bytes())
    start = data.find(b"mdat") + 4
    for place in range(start + 2000, start + 4000):
        data[place] ^= 0x5A
    (tmp_path / "a.mp4").write_bytes(data)
    assert "damaged or cut short" in error_of(tmp_path / "a.mp4", list(range(100)))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.ts"])
def test_noise_in_a_file_is_an_error_or_a_video(name, tmp_path):
    whole = film(tmp_path / name, 20, "mpeg2video" if name.endswith("ts") else "mpeg4").read_bytes()
    random = np.random.default_rng(4)
    limits = Limits(max_frames=100_000, patience=5.0)
    for _ in range(25):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 12):
            data[place] = random.integers(0, 256)
        with contextlib.suppress(PumiceError):
            for media in open_media(bytes(data), limits):
                if media.kind == "video":
                    assert len(list(read_frames(media, [0, media.frames // 2, media.frames - 1], limits))) == 3


def test_limits_are_kept_and_named(tmp_path):
    path = film(tmp_path / "a.mp4", 60)
    assert "60 frames" in error_of(path, max_frames=59)
    assert "2 seconds" in error_of(path, max_seconds=2)
    assert "64x48 pixels" in error_of(path, max_pixels=64 * 48 - 1)
    assert "64x48 pixels" in error_of(path, max_side=63)
    assert "at most 100 are read" in error_of(path, max_video_bytes=100)
    assert "takes more than 1e-06 seconds" in error_of(path, patience=1e-6)
    assert "60 frames" in error_of(film(tmp_path / "b.mkv", 61), max_frames=59)  # reading on has stopped there
    assert seen(opened(path, max_frames=60, max_seconds=3, max_pixels=64 * 48, max_side=64), [59]) == [59 % LEVELS]


def test_a_header_that_lies_about_its_frames(tmp_path):
    """Frames turn out larger than the header says."""
    large = film(tmp_path / "l.avi", 5, size=(640, 480))
    lying = large.read_bytes().replace(
        (640).to_bytes(4, "little") + (480).to_bytes(4, "little"), b"\x40\0\0\0\x30\0\0\0"
    )
    (tmp_path / "a.avi").write_bytes(lying)
    assert "640x480" in error_of(tmp_path / "a.avi", max_pixels=10_000)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("empty.mp4", b""),
        ("header.mp4", b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41"),
        ("header.mkv", b"\x1aE\xdf\xa3" + b"\0" * 40),
        ("header.avi", b"RIFF\xff\xff\xff\xffAVI LIST\xff\xff\xff\xffhdrl"),
        ("header.flv", b"FLV\x01\x05\0\0\0\x09\0\0\0\0"),
        ("sync.ts", (b"\x47" + b"\xff" * 187) * 6),
        ("sync.mpg", b"\0\0\x01\xba" + b"\0" * 2000),
        ("header.ogv", b"OggS" + b"\0" * 100),
        ("header.wmv", b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\0\xaa\0b\xcel" + b"\0" * 100),
        ("moov.mov", b"\0\0\0\x08moov" * 100),
        ("atoms.mp4", b"\0\0\0\0mdat" * 100),
        ("notes.mp4", b"Dear diary, nothing is moving here."),
    ],
)
def test_headers_without_a_video(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    error_of(tmp_path / name, patience=5.0)


def test_a_playlist_is_not_followed(tmp_path):
    """FFmpeg itself would open whatever a playlist names."""
    film(tmp_path / "secret.mp4")
    playlist = tmp_path / "a.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n")
    assert "not a video" in error_of(playlist)
    with pytest.raises(PumiceError, match="not a picture"):
        open_media(playlist)
    named = tmp_path / "concat:secret.mp4"
    film(tmp_path / "plain.mp4", 7).rename(named)
    assert opened(named).frames == 7


def test_pictures_in_the_clothes_of_videos():
    assert container(b"\0\0\0\x20ftypheic" + b"\0" * 100) is None
    assert container(b"\0\0\0\x20ftypavif" + b"\0" * 100) is None
    assert container(b"RIFF\x00\x00\x00\x00WEBPVP8 ") is None
    assert container(b"GIF89a" + b"\x47" * 1000) is None
    with pytest.raises(PumiceError, match="HEIC"):
        open_media(b"\0\0\0\x20ftypheic0000")


def test_an_animated_gif_is_a_picture():
    frames = [Image.new("RGB", (8, 8), (i * 60, 0, 0)) for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    (media,) = open_media(buffer.getvalue())
    assert (media.kind, media.name) == ("image", "bytes (first frame)")


def test_only_the_sampled_frames_are_kept(tmp_path):
    """80 frames of 1920 x 1080 would be 500 MB: reading them one by one needs far less."""
    path = film(tmp_path / "a.mp4", 80, size=(1920, 1080))
    code = (
        "import resource, sys; from pumice.vision.video import *; from pumice.vision.media import Limits\n"
        "media = open_video('a', sys.argv[1], Limits()); next(read_frames(media, [0]))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert sum(1 for image in read_frames(media, range(80)) if image.size == (1920, 1080)) == 80\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    grown = int(subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=True).stdout)
    assert grown * 1024 < 120e6


def test_frames_become_tiles(tmp_path):
    policy = VideoPolicy(tile=TILE, side=1, stride=1)
    media = opened(film(tmp_path / "a.mp4", 10))
    images = list(read_frames(media, [0, 4, 9]))
    placed = video_layout(3, media.size, policy)
    got = frame_tiles(iter(images), placed, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert got.shape == (3, 3, TILE, TILE)
    squashed = np.stack([np.asarray(image.resize((TILE, TILE), Image.Resampling.BICUBIC)) for image in images])
    expected = (torch.from_numpy(squashed).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    assert torch.allclose(got, expected, atol=1e-6)
    cut = video_layout(3, media.size, dataclasses.replace(policy, mode="crop"))
    middle = frame_tiles(iter(images), cut, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    corner = got[:, 0, 0, 0] - got[:, 2, 0, 0]
    assert (corner > 1).all()  # red
    assert middle.shape == got.shape
    assert not torch.equal(middle, got)
    with pytest.raises(PumiceError, match="2 frames; expected 3"):
        frame_tiles(iter(images[:2]), placed, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def features(frames: int, side: int, width: int = 6) -> torch.Tensor:
    return torch.randn(frames, side * side, width, generator=torch.Generator().manual_seed(frames * side))


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_merged_video_equals_transformers(frames):
    from transformers import CLIPVisionConfig, LlavaNextVideoConfig, LlavaOnevisionConfig, Qwen2Config
    from transformers.models.llava_next_video.modeling_llava_next_video import LlavaNextVideoPooler
    from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

    tiny: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = CLIPVisionConfig(**tiny, image_size=35, patch_size=5)
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**tiny, vocab_size=9, num_key_value_heads=1),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(0)
    model: Any = LlavaOnevisionModel(config).eval()
    torch.nn.init.normal_(model.image_newline)
    pixels = torch.randn(1, frames, 3, 35, 35)
    with torch.no_grad():
        expected = model.get_video_features(
            pixel_values_videos=pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
        ).pooler_output[0]
        patches = model.vision_tower(pixels[0], output_hidden_states=True).hidden_states[-1][:, 1:]
        projected = model.multi_modal_projector(patches)
        placed = video_layout(frames, (64, 48), VideoPolicy(tile=35, side=7))
        assert torch.allclose(merge_views(projected, placed, model.image_newline), expected, atol=1e-6)

    clip = video_layout(frames, (64, 48), VideoPolicy(35, 7, pool="average", newline="no_token"))
    pooler = LlavaNextVideoPooler(LlavaNextVideoConfig(vision_config=vision, spatial_pool_mode="average"))
    views = features(frames, 7)
    assert torch.allclose(merge_views(views, clip, None), pooler(views).flatten(0, 1), atol=1e-6)
    # LLaVA-NeXT-Video pools before its projector: the frames come pooled, and are left as they are.
    assert torch.equal(merge_views(pooler(views), clip, None), pooler(views).flatten(0, 1))


POLICIES = [
    VideoPolicy(35, 7, pool=mode, stride=stride, newline=newline, slow_every=slow_every)
    for mode, stride, newline, slow_every in itertools.product(
        ("bilinear", "average", "max"), (1, 2, 3), ("one_token", "grid", "frame", "no_token"), (1, 3)
    )
]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p.pool}-{p.stride}-{p.newline}-{p.slow_every}")
def test_merged_tokens_are_as_many_as_the_layout_says(policy):
    for frames in (1, 2, 3, 7):
        placed = video_layout(frames, (64, 48), policy)
        assert merge_views(features(frames, 7), placed, torch.ones(6)).shape == (placed.tokens, 6)


def test_where_newlines_stand():
    newline = torch.full((6,), 9.0)
    views = features(2, 4)
    small = pool(views, "bilinear", 2)  # 2 x 2 a frame
    expected = {
        "one_token": [small[0], small[1], newline[None]],
        "frame": [small[0], newline[None], small[1], newline[None]],
        "no_token": [small[0], small[1]],
        "grid": [row for frame in small for half in (frame[:2], frame[2:]) for row in (half, newline[None])],
    }
    for name, parts in expected.items():
        placed = video_layout(2, (64, 48), VideoPolicy(16, 4, newline=name))
        assert torch.equal(merge_views(views, placed, newline), torch.cat(parts)), name


def test_fast_frames_are_pooled_more():
    views = features(5, 8)
    placed = video_layout(5, (64, 48), VideoPolicy(16, 8, newline="frame", slow_every=3))
    newline = torch.zeros(1, 6)
    slow, fast = pool(views, "bilinear", 2), pool(views, "bilinear", 4)
    expected = [slow[0], newline, fast[1], newline, fast[2], newline, slow[3], newline, fast[4], newline]
    assert torch.equal(merge_views(views, placed, newline[0]), torch.cat(expected))


def test_features_that_do_not_fit_are_refused():
    placed = video_layout(3, (64, 48), VideoPolicy(35, 7))
    with pytest.raises(PumiceError, match="3 sampled frames has 3 views, found 2"):
        merge_views(features(2, 7), placed, torch.ones(6))
    with pytest.raises(PumiceError, match="49 tokens a frame before pooling, found 36"):
        merge_views(features(3, 6), placed, torch.ones(6))
    with pytest.raises(PumiceError, match="no newline embedding"):
        merge_views(features(3, 7), placed, None)
    slow = video_layout(3, (64, 48), VideoPolicy(35, 7, slow_every=2))
    with pytest.raises(PumiceError, match="found 16"):
        merge_views(features(3, 4), slow, torch.ones(6))


def test_a_real_layout_merges_at_full_size():
    placed = video_layout(32, (1920, 1080), ONEVISION_VIDEO)
    assert merge_views(features(32, 27, 2), placed, torch.ones(2)).shape == (6273, 2)
