"""Sounds, grey images and motions as tensors: the spectrogram of another author, and files that are bad in each way."""

import numpy as np
import pytest
import torch
from media_bytes import RATE, npy, png, sound, tone
from unicl_imagebind.readers import GreyReader, MotionReader, SoundReader, decode_sound, log_mel, mel_filters

from unicl_cli.api import UniclError

SOUND = SoundReader(mels=32, frames=20, clips=1, mean=-4.0, std=9.0)
LENGTH = 19 * 160 + 400
"""Samples of its clip."""


# -- sounds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mels", [32, 128])
def test_log_mel_energies_are_those_of_transformers(mels: int) -> None:
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    wave = tone(4000) + 0.1 * np.random.default_rng(0).normal(size=4000)
    bank = mel_filter_bank(
        num_frequency_bins=257, num_mel_filters=mels, min_frequency=20, max_frequency=RATE / 2, sampling_rate=RATE,
        norm=None, mel_scale="kaldi", triangularize_in_mel_space=True,
    )  # fmt: skip
    torch.testing.assert_close(mel_filters(mels), torch.from_numpy(bank), rtol=1e-9, atol=1e-9)
    expected = spectrogram(
        wave, window_function(400, "hann", periodic=False), frame_length=400, hop_length=160, fft_length=512, power=2.0,
        center=False, preemphasis=0.97, mel_filters=bank, log_mel="log", mel_floor=1.192092955078125e-07,
        remove_dc_offset=True,
    )  # fmt: skip
    found = log_mel(torch.from_numpy(wave)[None], mels)[0]
    assert found.shape == expected.shape
    assert float((found - torch.from_numpy(expected)).abs().max()) < 1e-3  # theirs is in float32


def test_a_clip_is_the_middle_of_a_sound_or_ends_in_silence() -> None:
    wave = np.concatenate([tone(6000, hertz=300), tone(LENGTH, hertz=1000), tone(6000, hertz=300)])
    data = sound(wave, subtype="DOUBLE")
    middle = log_mel(torch.from_numpy(wave[6000 : 6000 + LENGTH])[None], 32)
    torch.testing.assert_close(SOUND(data), ((middle + 4) / 9).float())
    short = SOUND(sound(tone(LENGTH // 2)))
    assert short.shape == SOUND.shape
    silence = float((np.log(np.finfo(np.float32).eps) + 4) / 9)
    assert short[0, :, -1].tolist() == pytest.approx([silence] * 32, abs=1e-6)
    assert float(short[0, :, 0].max()) > silence + 0.5


def test_clips_are_spread_evenly_over_a_sound() -> None:
    three, wave = SOUND._replace(clips=3), tone(3 * LENGTH) * np.linspace(0, 1, 3 * LENGTH)
    x = three(sound(wave, subtype="DOUBLE"))
    assert x.shape == (3, 32, 20)
    for clip, start in zip(x, (0, LENGTH, 2 * LENGTH), strict=True):
        torch.testing.assert_close(clip, SOUND(sound(wave[start : start + LENGTH], subtype="DOUBLE"))[0])
    assert three(sound(tone(100))).shape == (3, 32, 20)


def test_channels_are_mixed_down_and_other_rates_are_resampled() -> None:
    parts = np.stack([tone(4000, hertz=100.0 * n) for n in range(1, 9)], 1)
    assert decode_sound(sound(parts, subtype="DOUBLE")) == pytest.approx(parts.mean(1))
    for rate in (8_000, 22_050, 44_100, 48_000):
        found = decode_sound(sound(tone(rate, rate), rate, subtype="DOUBLE"))
        assert len(found) == RATE
        assert found[1000:-1000] == pytest.approx(tone(RATE)[1000:-1000], abs=5e-3)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_each_format_is_read_and_refused_where_it_is_cut(kind: str) -> None:
    data = sound(tone(40_000), kind=kind)
    assert len(decode_sound(data)) == 40_000
    for share in (0.3, 0.7, 0.95):
        with pytest.raises(UniclError, match=r"cut off|can be read"):
            decode_sound(data[: int(share * len(data))])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a WAV, FLAC or OGG file"),
        (b"RIFF", "not a WAV, FLAC or OGG file"),
        (b"some text that is no sound at all", "not a WAV, FLAC or OGG file"),
        (sound(np.zeros(0)), "a WAV without samples"),
        (sound(np.zeros((0, 8))), "a WAV without samples"),
        (sound(tone(900), kind="FLAC")[:60] + bytes(900), "not a sound that can be read"),
        (sound(np.array([0.1, np.nan, 0.2]), subtype="FLOAT"), "samples that are not finite"),
        (sound(np.array([0.1, np.inf, 0.2]), subtype="DOUBLE"), "samples that are not finite"),
        (sound(np.array([0.1, 1e300, 0.2]), subtype="DOUBLE"), "samples that are not finite"),
        (sound(np.zeros(100), rate=10), "10 samples a second, outside"),
    ],
    ids=["empty", "cut", "text", "no-samples", "no-samples-8", "zeros", "nan", "inf", "huge", "slow"],
    # without ids, the names would vary: a WAV holds the time
)
def test_a_bad_sound_says_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(UniclError, match=message) as error:
        SOUND(data)
    assert "\n" not in error.value.message
    assert "0x" not in error.value.message


def test_a_loud_sound_is_finite() -> None:
    assert SOUND(sound(np.full(5000, 1e30), subtype="DOUBLE")).isfinite().all()
    assert SOUND(sound(np.zeros(5000))).isfinite().all()


# -- grey images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "most"), [(np.uint8, 255), (np.uint16, 65535)])
def test_grey_values_are_scaled_by_their_depth_and_resized_to_the_middle_square(kind: type, most: int) -> None:
    values = np.zeros((16, 48), kind)
    values[:, 16:32] = most
    x = GreyReader(8)(png(values))
    assert x.shape == (1, 8, 8)
    assert float(x[0, :, 1:-1].min()) == 1.0  # the left and right third are outside
    assert float(GreyReader(8)(png(np.zeros((5, 7), kind))).max()) == -1.0
    half = GreyReader(4)(png(np.full((4, 4), most // 2, kind)))
    assert half.flatten().tolist() == pytest.approx([2 * (most // 2) / most - 1] * 16, abs=1e-6)


def test_a_bad_image_says_what_is_wrong() -> None:
    good = png(np.random.default_rng(0).integers(0, 65535, (64, 64)).astype(np.uint16))
    colour = png(np.zeros((4, 4, 3), np.uint8))
    for data, message in (
        (b"", "cannot be read"),
        (b"text", "cannot be read"),
        (colour, r"3 channels \(RGB\) instead of grey values"),
        (good[: len(good) // 2], "cut off or damaged|cannot be read"),
    ):
        with pytest.raises(UniclError, match=message):
            GreyReader(8)(data)


# -- motion ------------------------------------------------------------------------------------------------------


def test_motions_are_the_middle_of_a_file_or_end_in_zeros() -> None:
    values = np.arange(60, dtype=np.float32).reshape(10, 6)
    x = MotionReader(4)(npy(values))
    assert x.tolist() == values[3:7].T.tolist()
    longer = MotionReader(12)(npy(values))
    assert longer.shape == (6, 12)
    assert longer[:, :10].tolist() == values.T.tolist()
    assert not longer[:, 10:].any()
    text = "ax,ay,az,gx,gy,gz\n" + "\n".join(",".join(map(str, row)) for row in values.tolist()) + "\n"
    for data in (text.encode(), ("\ufeff" + text).encode(), text.partition("\n")[2].encode()):
        assert MotionReader(12)(data).tolist() == longer.tolist()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a CSV without numbers"),
        (b"a,b,c,d,e,f\n", "a CSV without numbers"),
        (npy(np.zeros((0, 6), np.float32)), r"an NPY of float32 \(0, 6\)"),
        (npy(np.zeros((6, 9), np.float32)), r"an NPY of float32 \(6, 9\)"),
        (npy(np.zeros(6, np.float32)), r"an NPY of float32 \(6,\)"),
        (npy(np.zeros((4, 6), complex)), r"an NPY of complex128 \(4, 6\), not float32"),
        (npy(np.full((4, 6), 1e300)), "not finite"),
        (npy(np.zeros((4, 6), np.float32))[:-8], "an NPY that cannot be read"),
        (npy(np.zeros((4, 6), np.float32))[:20], "an NPY that cannot be read"),
        (npy(np.array([{}] * 6, object)), "an NPY that cannot be read"),
        (npy(np.full((4, 6), np.nan, np.float32)), "not finite"),
        (b"1,2,3,4,5,nan\n", "not finite"),
        (b"1,2,3,4,5,6\n1,2,3,4,5\n", "row 2 is not 6 numbers"),
        (b"1,2,3,4,5,6\n1,2,x,4,5,6\n", "row 2 is not 6 numbers"),
        (b"\xff\xfe\x00", "neither NPY nor a CSV"),
    ],
)
def test_a_bad_motion_says_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(UniclError, match=message):
        MotionReader(8)(data)
