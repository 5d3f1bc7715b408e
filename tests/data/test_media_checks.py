"""Files of media: what each kind takes, and the fault of what it does not."""

import io
import struct
import wave

import numpy as np
import pytest
from PIL import Image

from unicl_cli.data import media
from unicl_cli.data.media import MediaError, check_media, read_imu_csv, read_medium

ROWS = np.arange(24, dtype=np.float32).reshape(4, 6)
LINES = "\n".join(",".join(map(str, row)) for row in ROWS.tolist())


def wav(frames=100, **changed):
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(changed.get("channels", 1))
        file.setsampwidth(2)
        file.setframerate(changed.get("rate", 16_000))
        file.writeframes(bytes(2 * frames))
    return out.getvalue()


def with_chunk(data):
    """A WAV with a chunk of 3 bytes, which is padded to 4, before its samples."""
    return data[:36] + b"LIST\x03\0\0\0abc\0" + data[36:]


def flac(frames=3, smallest=50, kept=None):
    """STREAMINFO of blocks of 100 samples, a comment, and frames of 60 bytes that nothing decodes."""
    packed = (16_000 << 44 | 15 << 36 | 100 * frames).to_bytes(8, "big")
    info = struct.pack(">HH", 100, 100) + smallest.to_bytes(3, "big") + (60).to_bytes(3, "big") + packed + bytes(16)
    body = bytes(60 * frames if kept is None else kept)
    return b"fLaC\x00\0\0\x22" + info + b"\x84\0\0\x04abcd" + body


def page(payload, granule):
    table = bytes([255] * (len(payload) // 255) + [len(payload) % 255])
    return b"OggS\0\0" + granule.to_bytes(8, "little", signed=True) + bytes(12) + bytes([len(table)]) + table + payload


def ogg(samples=900, first=b"\x01vorbis", size=300):
    return page(first + bytes(20), 0) + page(bytes(400), -1) + page(bytes(size), samples)


def png(mode="I;16", size=(8, 6)):
    out = io.BytesIO()
    Image.new(mode, size).save(out, "PNG")
    return out.getvalue()


def turned_jpeg():
    out, image = io.BytesIO(), Image.new("RGB", (6, 8))
    image.getexif()[0x0112] = 6
    image.save(out, "JPEG", exif=image.getexif())
    return out.getvalue()


def npy(values):
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def check(kind, data, image=None):
    check_media({kind: data}, {kind: "a/1"}, image or png("RGB"))


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("audio", wav()),
        ("audio", wav(channels=8, rate=44_100)),
        ("audio", with_chunk(wav())),
        ("audio", wav()[:40] + b"\xff\xff\xff\xff" + bytes(50)),
        ("audio", flac()),
        ("audio", ogg()),
        ("audio", ogg(first=b"OpusHead")),
        ("depth", png()),
        ("thermal", png()),
        ("thermal", png("L")),
        ("imu", npy(ROWS)),
        ("imu", npy(np.asfortranarray(ROWS))),
        ("imu", LINES.encode()),
        ("imu", f"\ufeffax,ay,az,gx,gy,gz\r\n{LINES}\r\n\r\n".encode()),
    ],
)
def test_files_of_each_kind_are_taken(kind, data):
    check(kind, data)


@pytest.mark.parametrize(
    ("kind", "data", "fault"),
    [
        *[(kind, b"", "an empty file") for kind in media.KINDS],
        ("audio", b"ID3 a song", "not a WAV, FLAC or OGG file"),
        ("audio", b"RIFF\0\0\0\0WEBPVP8 ", "not a WAV, FLAC or OGG file"),
        ("audio", wav(0), "a WAV without samples"),
        ("audio", wav()[:36], "a WAV without samples"),
        ("audio", wav()[:-7], "a WAV that is cut off: 193 of 200 bytes of samples"),
        ("audio", wav()[:30], "a WAV whose format is cut off"),
        ("audio", wav()[:22] + b"\0\0" + wav()[24:], "a WAV of 0 channels at 16000 Hz"),
        ("audio", wav()[:12] + wav()[36:], "a WAV without a format before its samples"),
        ("audio", flac(kept=0), "a FLAC without samples"),
        ("audio", flac(kept=149), "a FLAC that is cut off"),
        ("audio", flac()[:45], "a FLAC that is cut off in its header"),
        ("audio", flac()[:30], "a FLAC whose header is cut off or damaged"),
        ("audio", flac()[:18] + b"\0\0\0\0" + flac()[22:], "a FLAC of 0 Hz"),
        ("audio", ogg()[:-1], "an OGG that is cut off in the page at byte 484"),
        ("audio", ogg()[:40], "an OGG that is cut off in the page at byte 0"),
        ("audio", ogg()[:500], "an OGG that is cut off in the page at byte 484"),
        ("audio", ogg(samples=0), "an OGG without samples"),
        ("audio", ogg(first=b"\x80theora"), "an OGG without sound of Vorbis, Opus, FLAC or Speex in its first page"),
        ("audio", ogg() + b"Oggs" + bytes(40), "an OGG that is damaged at byte 813"),
        ("depth", png("L"), "a PNG of 8-bit grey, not of 16-bit grey"),
        ("depth", png("RGB"), "a PNG of 8-bit RGB, not of 16-bit grey"),
        ("thermal", png("P"), "a PNG of 1-bit colours of a palette, not of 8- or 16-bit grey"),
        ("thermal", png("1"), "a PNG of 1-bit grey, not of 8- or 16-bit grey"),
        ("depth", png()[:-14], "a PNG that is cut off"),
        ("thermal", turned_jpeg(), "not a PNG file"),
        ("depth", png(size=(6, 8)), "6 x 8 pixels, but its image has 8 x 6: save both at one size"),
        ("imu", npy(ROWS.astype(np.float64)), r"an NPY of float64 (4, 6), not float32 (T, 6)"),
        ("imu", npy(ROWS.T), "an NPY of float32 (6, 4), not float32 (T, 6)"),
        ("imu", npy(ROWS[:0]), "an NPY of float32 (0, 6), not float32 (T, 6)"),
        ("imu", npy(ROWS)[:-5], "an NPY that cannot be read: "),
        ("imu", npy(np.array([[object()] * 6])), "an NPY that cannot be read: "),
        ("imu", npy(np.where(ROWS == 3, np.nan, ROWS)), "has values that are not finite"),
        ("imu", b"1,2,3,4,5,1e39\n", "has values that are not finite"),
        ("imu", b"1,2,3,4,5\n", "a CSV whose row 1 is not 6 numbers with commas between them"),
        ("imu", f"{LINES}\n1;2;3;4;5;6".encode(), "a CSV whose row 5 is not 6 numbers with commas between them"),
        ("imu", b"ax,ay,az,gx,gy,gz\n", "a CSV without numbers"),
        ("imu", b"\xff\xfe\0", "neither NPY nor a CSV in UTF-8"),
    ],
)
def test_the_fault_of_other_files_is_told(kind, data, fault):
    with pytest.raises(MediaError) as caught:
        check(kind, data)
    assert caught.value.reason == "bad_media"
    assert caught.value.detail.startswith(f"{kind}: a/1: {fault}")


def test_a_map_has_the_size_of_its_image_upright():
    check("depth", png(size=(8, 6)), turned_jpeg())
    with pytest.raises(MediaError, match="6 x 8 pixels, but its image has 8 x 6"):
        check("thermal", png(size=(6, 8)), turned_jpeg())


def test_a_csv_gives_the_numbers_of_the_same_npy():
    values = read_imu_csv(f"ax,ay,az,gx,gy,gz\n{LINES}".encode())
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, ROWS)


def test_a_file_that_cannot_be_read_has_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(media, "MAX_MEDIA_BYTES", 10)
    (tmp_path / "large").write_bytes(bytes(11))
    for name, reason in (("gone", "missing_file"), ("large", "media_too_large"), (".", "bad_media")):
        with pytest.raises(MediaError, match=f"audio: {name}") as caught:
            read_medium("audio", tmp_path / name, name)
        assert caught.value.reason == reason
