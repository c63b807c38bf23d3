"""Object storage: a real server on loopback, and a proxy before it that fails as stores do."""

import itertools
import os
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from buckets import HALF_GET, HALF_PUT, LOST, RESET, SECRET, Answer, Bucket, Fault, Request, proxy
from buckets import bucket as bucket

from pipeline import credentials, objects, storage
from pipeline.objects import ChangedError, StorageError

DATA = bytes(range(256)) * 400


def first(number: int, fault: Fault, kind: str = "") -> "Plan":
    return Plan(number, fault, kind)


class Plan:
    """A fault for the first requests (of a kind)."""

    def __init__(self, number: int, fault: Fault, kind: str) -> None:
        self.left, self.fault, self.kind = number, fault, kind

    def __call__(self, request: Request) -> Fault:
        if self.left and self.kind in ("", request.kind):
            self.left -= 1
            return self.fault
        return None


def test_keys_are_as_written_and_changed_bytes_have_another_stat(bucket: Bucket) -> None:
    uri = f"{bucket.uri}/some folder/a%20b ü?.bin"
    assert not storage.exists(uri)
    storage.put(uri, b"12345")
    assert bucket.listed() == ["some folder/a%20b ü?.bin"]
    assert storage.exists(uri)
    assert storage.read_bytes(uri) == b"12345"
    before = storage.stat(uri)
    assert before.startswith("5:")
    assert storage.read(uri) == (before, b"12345")
    storage.put(uri, b"54321")
    assert storage.stat(uri) != before
    with pytest.raises(FileNotFoundError):
        storage.stat(f"{bucket.uri}/nothing")
    with pytest.raises(OSError, match="cannot use nope://"):
        storage.read_bytes("nope://bucket/a")
    storage.remove(uri)
    storage.remove(uri)
    assert bucket.listed() == []


def test_the_library_reads_s3_that_the_uri_describes(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    bucket.put("a.bin", b"1")
    options = f"?endpoint_override=127.0.0.1:{bucket.port}&scheme=http&region=eu-west-1"
    assert storage.read_bytes(f"{bucket.uri}/a.bin{options}") == b"1"


def test_web_addresses_are_read_and_never_written(bucket: Bucket) -> None:
    bucket.put("a b.bin", DATA, x_amz_acl="public-read")
    uri = f"{bucket.endpoint}/{bucket.name}/a%20b.bin"
    assert storage.read_bytes(uri) == DATA
    assert storage.stat(uri).startswith(f"{len(DATA)}:")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{bucket.endpoint}/{bucket.name}/nothing")
    with pytest.raises(StorageError, match="can only be read"):
        storage.put(uri, b"")
    bucket.fault = lambda request: Answer(403, "AccessDenied")
    with pytest.raises(PermissionError, match="refuses it; copy the file"):
        storage.read_bytes(uri)


@pytest.mark.parametrize(
    "fault",
    [
        Answer(503, "SlowDown"),
        Answer(429, "TooManyRequests"),
        Answer(500, "InternalError"),
        RESET,
        LOST,
        HALF_PUT,
        HALF_GET,
        0.3,
    ],
    ids=str,
)
def test_what_fails_in_passing_is_done_again(bucket: Bucket, fault: Fault) -> None:
    uri = f"{bucket.uri}/a.bin"

    def twice_at_fault() -> None:
        bucket.fault = first(2, fault)

    twice_at_fault()
    storage.put(uri, DATA, attributes={"stylizekey": "k"})
    twice_at_fault()
    assert storage.read_bytes(uri) == DATA
    twice_at_fault()
    assert objects.head(uri).attributes == {"stylizekey": "k"}
    twice_at_fault()
    etag = objects.create(f"{bucket.uri}/new", DATA)
    twice_at_fault()
    assert objects.replace(f"{bucket.uri}/new", b"newer", etag)
    twice_at_fault()
    assert [name for name, _ in objects.listing(bucket.uri)] == ["a.bin", "new"]
    twice_at_fault()
    storage.remove_all([uri, f"{bucket.uri}/new"])
    assert bucket.listed() == []


def test_waits_between_tries_grow(bucket: Bucket) -> None:
    bucket.put("a.bin", DATA)
    times: list[float] = []

    def away(request: Request) -> Fault:
        times.append(time.monotonic())
        return RESET if len(times) <= 7 else None

    bucket.fault = away
    assert storage.read_bytes(f"{bucket.uri}/a.bin") == DATA
    waits = [after - before for before, after in itertools.pairwise(times)]
    assert len(waits) == 7
    assert waits[0] >= 0.19
    assert max(waits) > 1.5 * waits[0]  # chance has a part in each: this fails once in 4000


def test_a_server_that_is_away_for_a_while_is_waited_for(bucket: Bucket) -> None:
    bucket.put("a.bin", DATA)
    away = Bucket("studio", 0, bucket.server_port)
    with proxy(away):
        port = away.port  # nobody listens there any more after this

    def come_back() -> None:
        time.sleep(4)
        with proxy(Bucket("studio", port, bucket.server_port)):
            done.wait(60)

    done = threading.Event()
    thread = threading.Thread(target=come_back)
    thread.start()
    try:
        uri = f"{bucket.uri}/a.bin?endpoint_override=127.0.0.1:{port}&scheme=http"
        began = time.monotonic()
        assert storage.read_bytes(uri) == DATA
        assert time.monotonic() - began >= 3
    finally:
        done.set()
        thread.join()


def test_a_store_that_stays_away_is_not_waited_for_again_and_again(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PATIENCE", 2.0)
    monkeypatch.setattr(objects, "HASTE", 0.05)
    bucket.put("a.bin", DATA)
    uri = f"{bucket.uri}/a.bin"

    def tries() -> int:
        bucket.requests.clear()
        bucket.fault = lambda request: RESET
        with pytest.raises(StorageError, match="does not answer as it should"):
            storage.read_bytes(uri)
        bucket.fault = lambda request: None
        return len(bucket.requests)

    assert tries() > 2  # the first wait is 0.2 s, and each longer than the one before
    assert tries() <= 2
    assert storage.read_bytes(uri) == DATA
    assert tries() > 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(403, "AccessDenied"), r"access is refused \(AccessDenied\); allow it"),
        (Answer(403, "InvalidAccessKeyId"), r"access is refused \(InvalidAccessKeyId\)"),
        (Answer(403, "SignatureDoesNotMatch"), r"access is refused \(SignatureDoesNotMatch\)"),
        (Answer(400, "ExpiredToken"), r"the credentials have expired \(ExpiredToken\); log in"),
        (Answer(403, "ExpiredToken"), r"the credentials have expired \(ExpiredToken\); log in"),
        (Answer(404, "NoSuchBucket"), r"there is no bucket 'studio' at s3://"),
        (Answer(403, "RequestTimeTooSkewed"), "the clock here is wrong; set it"),
        (Answer(301, "PermanentRedirect"), "another region; set AWS_REGION"),
    ],
    ids=lambda value: getattr(value, "code", ""),
)
def test_what_no_pair_is_to_blame_for_ends_the_run_with_a_remedy(
    bucket: Bucket, answer: Answer, words: str
) -> None:
    bucket.fault = lambda request: answer
    for ask in (
        lambda: storage.read_bytes(f"{bucket.uri}/a.bin"),
        lambda: storage.put(f"{bucket.uri}/a.bin", b""),
        lambda: objects.create(f"{bucket.uri}/a.bin", b""),
        lambda: list(objects.listing(f"{bucket.uri}/a")),
    ):
        with pytest.raises(StorageError, match=words) as caught:
            ask()
        assert "studio" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert SECRET not in str(caught.value)


def test_a_bucket_that_is_not_there_is_told_from_a_missing_object(bucket: Bucket) -> None:
    for ask in (storage.stat, storage.read_bytes, storage.exists):
        with pytest.raises(StorageError, match="there is no bucket 'another' at s3://; make it"):
            ask("s3://another/a.bin")
    assert not storage.exists(f"{bucket.uri}/a.bin")
    bucket.requests.clear()
    assert not storage.exists(f"{bucket.uri}/b.bin")
    assert len(bucket.requests) == 1  # that the bucket is there is asked once


def test_conditions_hold_and_a_lost_answer_is_no_rival(bucket: Bucket) -> None:
    uri = f"{bucket.uri}/lock"
    etag = objects.create(uri, b"one")
    with pytest.raises(FileExistsError):
        objects.create(uri, b"two")
    assert objects.create(uri, b"one") == etag  # this process's own, whose answer was lost
    newer = objects.replace(uri, b"three", etag)
    with pytest.raises(ChangedError):
        objects.replace(uri, b"four", etag)
    assert objects.replace(uri, b"three", etag) == newer
    assert bucket.get("lock") == b"three"
    bucket.delete("lock")
    with pytest.raises(ChangedError):
        objects.replace(uri, b"five", newer)
    assert bucket.listed() == []


def test_one_of_many_at_once_creates_an_object(bucket: Bucket) -> None:
    won: list[int] = []

    def race(number: int) -> None:
        try:
            objects.create(f"{bucket.uri}/lock", b"%d" % number)
            won.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=race, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert bucket.get("lock") == b"%d" % won[0]


def test_a_listing_goes_on_from_page_to_page_and_past_broken_answers(bucket: Bucket) -> None:
    names = [f"x/{number:02}.png" for number in range(20)]
    for name in names:
        bucket.put(f"out/{name}", b"1")
    bucket.page = 3
    bucket.fault = lambda request: HALF_GET if len(bucket.requests) in (2, 5) else None
    assert [name for name, _ in objects.listing(f"{bucket.uri}/out")] == names
    assert len(bucket.requests) in range(9, 14)


def test_many_objects_are_listed_and_few_are_asked_for_side_by_side(bucket: Bucket) -> None:
    for number in range(60):
        bucket.put(f"photos/{number:02}.jpg", b"%d" % number)
    uris = [f"{bucket.uri}/photos/{number:02}.jpg" for number in range(60)]
    gone = f"{bucket.uri}/photos/gone.jpg"
    stats = storage.stats([*uris, gone])
    assert bucket.counted() == {"LIST": 1}
    assert stats.keys() == set(uris)
    assert stats[uris[3]] == storage.stat(uris[3])
    bucket.requests.clear()
    inside, several = itertools.count(1), threading.Event()

    def wait_for_others(request: Request) -> Fault:
        """No answer before there are four requests at a time."""
        if next(inside) == 4:
            several.set()
        return None if several.wait(10) else RESET

    bucket.fault = wait_for_others
    assert storage.stats([*uris[:30], gone]).keys() == set(uris[:30])
    assert several.is_set()
    assert bucket.counted()["HEAD"] == 31


def test_a_folder_of_far_more_than_is_asked_for_is_not_listed_to_its_end(bucket: Bucket) -> None:
    uris = [f"{bucket.uri}/p/{number:05}.jpg" for number in (0, *range(2900, 2940))]
    for number in range(3000):
        if number % 2 == 0 or number >= 2900:
            bucket.put_at_once(f"p/{number:05}.jpg", b"1")
    bucket.page = 200
    assert storage.stats(uris).keys() == set(uris)
    assert bucket.counted()["LIST"] < 10
    assert bucket.counted()["HEAD"] == 40


def test_secrets_in_addresses_are_refused_and_not_repeated() -> None:
    for uri in (
        f"s3://AKIDEXAMPLE:{SECRET}@bucket/a.jpg",
        f"s3://AKIDEXAMPLE:a/{SECRET}@bucket/a.jpg",
        f"https://me:a/{SECRET}@host/a.jpg",
        f"https://me:{SECRET}@host/a.jpg",
        f"s3://bucket/a.jpg?secret_key={SECRET}",
        f"https://host/a.jpg?X-Amz-Signature={SECRET}",
        f"gs://bucket/a.jpg?token={SECRET}",
    ):
        problem = storage.uri_problem(uri)
        assert problem
        assert SECRET not in problem
        with pytest.raises(OSError, match=r"address|option") as caught:
            storage.read_bytes(uri)
        assert SECRET not in str(caught.value)
    assert storage.shown(f"s3://A:{SECRET}@bucket/a.jpg") == "s3://…@bucket/a.jpg"
    assert storage.shown(f"s3://A:a/{SECRET}@bucket/a.jpg") == "s3://…@bucket/a.jpg"
    assert storage.shown("s3://bucket/a@2x.jpg") == "s3://bucket/a@2x.jpg"
    assert storage.uri_problem("s3://bucket/a@2x.jpg") == ""
    assert storage.uri_problem("http://host:8080/a.jpg") == ""
    assert storage.uri_problem("s3:///a.jpg") == '"s3:///a.jpg" names no bucket'
    assert "empty name between two /" in storage.uri_problem("s3://b//a.jpg")
    assert storage.uri_problem("s3://b/what?.jpg") == ""


def test_credentials_come_from_a_profile(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket.put("a.bin", b"1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = WRONG\naws_secret_access_key = x\n"
        f"[studio]\naws_access_key_id = AKIDPROFILE\naws_secret_access_key = {SECRET}\n"
    )
    (tmp_path / "config").write_text(
        f"[profile studio]\nregion = eu-west-3\nendpoint_url = {bucket.endpoint}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "studio")
    assert storage.read_bytes(f"{bucket.uri}/a.bin") == b"1"
    (request,) = bucket.requests
    assert "Credential=AKIDPROFILE/" in request.headers["authorization"]
    assert "/eu-west-3/s3/" in request.headers["authorization"]
    objects.forget()
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(StorageError, match="there is no profile 'nobody', which AWS_PROFILE names"):
        storage.read_bytes(f"{bucket.uri}/a.bin")


def test_without_credentials_requests_are_not_signed_and_nothing_is_waited_for(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket.put("a.bin", b"1", x_amz_acl="public-read")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert storage.read_bytes(f"{bucket.uri}/a.bin") == b"1"
    (request,) = bucket.requests
    assert "authorization" not in request.headers
    for scheme in ("gs", "az"):
        assert credentials.options_of(scheme) == {"skip_signature": True}


@pytest.mark.parametrize(
    "text",
    ["localhost:9000", "http://", "http://h:x", "http://h:99999", "http://[::1", "http://h i"],
)
def test_an_address_of_a_store_that_is_none_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scheme, name in (
        ("s3", "AWS_ENDPOINT_URL"),
        ("gs", "GOOGLE_BASE_URL"),
        ("az", "AZURE_STORAGE_ENDPOINT"),
    ):
        monkeypatch.setenv(name, text)
        with pytest.raises(StorageError) as refused:
            storage.read_bytes(f"{scheme}://nowhere/a.jpg")
        assert f"{name} is {text!r}; write it like http://localhost:9000" in str(refused.value)
        monkeypatch.delenv(name)


def test_an_address_in_a_uri_or_a_profile_is_looked_at_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with pytest.raises(StorageError, match="endpoint_override is 'https://h:x'; write it like"):
        storage.read_bytes("s3://nowhere/a.jpg?endpoint_override=h:x")
    (tmp_path / "config").write_text(f"[default]\nendpoint_url = me:{SECRET}@h:9\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(StorageError) as refused:
        storage.read_bytes("s3://nowhere/a.jpg")
    assert "endpoint_url of the profile is '…@h:9'; write it like" in str(refused.value)


def test_a_profile_that_gives_no_keys_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def none() -> None:
        raise RuntimeError("the login has ended")

    provider = types.ModuleType("obstore.auth.boto3")
    provider.__dict__["Boto3CredentialProvider"] = none
    monkeypatch.setitem(sys.modules, "obstore.auth.boto3", provider)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config").write_text("[profile sso]\nsso_session = studio\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "sso")
    with pytest.raises(StorageError, match="the profile gives no credentials: the login has ended"):
        storage.read_bytes("s3://nowhere/a.jpg")


def test_what_needs_boto3_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config").write_text("[profile sso]\nsso_session = studio\n")
    code = (
        "import sys; sys.modules['boto3'] = None\n"
        "from pipeline import storage\n"
        "try:\n    storage.stat('s3://bucket/a')\n"
        "except storage.StorageError as error:\n    print(error)"
    )
    env = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_PROFILE": "sso", "AWS_REGION": "x"}
    inherited = {name: text for name, text in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=inherited | env, capture_output=True, text=True
    )
    assert "s3://bucket: the profile gets its keys by a login or a role" in done.stdout, done.stderr
    assert "pip install boto3" in done.stdout
