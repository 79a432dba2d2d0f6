"""Where Apache Kafka's jars come from: an installation in `KAFKA_HOME`, or Maven, pinned and checked by digest.

Maven copies the jars that `infra/deploy/kafka/pom.xml` names into the user's cache, once for all checkouts. The folder
appears under its name when all jars are there and every digest is the one in `jars.sha256`: a half-filled or altered
copy is never run.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from infra.errors import ConfigError, CorruptStateError, RetryableError

KAFKA_VERSION = "4.3.0"
MAVEN_TIMEOUT_S = 600
POM = Path(__file__).parents[1] / "deploy" / "kafka" / "pom.xml"
DIGESTS = POM.with_name("jars.sha256")


def cache_folder(env: Mapping[str, str] = os.environ) -> Path:
    """`OUZEL_CACHE`, or `ouzel` in the user's cache folder."""
    base = env.get("OUZEL_CACHE") or str(Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ouzel")
    return Path(base)


def find_java(env: Mapping[str, str] = os.environ) -> str:
    """The `java` of `JAVA_HOME` or of the path. ConfigError where there is none."""
    home = env.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin" if home else env.get("PATH"))
    if found is None:
        raise ConfigError(
            f"no java in {'JAVA_HOME=' + home if home else 'the PATH'}: a Kafka broker needs Java 17 or newer "
            "(Debian: apt install openjdk-17-jre-headless), or give OUZEL_KAFKA=host:port of a running one"
        )
    return found


def kafka_jars(env: Mapping[str, str] = os.environ) -> Path:
    """The folder of Kafka's jars, made where it is not there yet.

    Raises ConfigError where neither an installation nor Maven is there, RetryableError where Maven failed,
    CorruptStateError where a jar is not the one that was pinned.
    """
    if home := env.get("KAFKA_HOME"):
        libs = Path(home) / "libs"
        if not any(libs.glob("kafka_2.1*.jar")):
            raise ConfigError(f"KAFKA_HOME={home}: no {libs}/kafka_2.13-*.jar; point it at an unpacked Kafka 4.x")
        return libs
    jars = cache_folder(env) / "kafka" / KAFKA_VERSION
    if not jars.is_dir():
        _fetch(jars, env)
    return jars


def _fetch(jars: Path, env: Mapping[str, str]) -> None:
    maven = shutil.which("mvn", path=env.get("PATH"))
    if maven is None:
        raise ConfigError(
            "no mvn in the PATH to fetch Apache Kafka with (Debian: apt install maven); or set KAFKA_HOME to an "
            "unpacked Kafka 4.x, or OUZEL_KAFKA=host:port to a running broker"
        )
    print(f"fetching Apache Kafka {KAFKA_VERSION} by Maven into {jars}, once", file=sys.stderr, flush=True)
    jars.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".fetching-", dir=jars.parent))
    try:
        shutil.copy(POM, scratch)  # Maven makes a `target` beside the pom it reads
        _run_maven([maven, "-q", "-B", "-C", "dependency:copy-dependencies", "-DoutputDirectory=jars"], scratch, env)
        check_digests(scratch / "jars")
        if not jars.is_dir():  # another process may have been first
            os.replace(scratch / "jars", jars)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run_maven(command: list[str], folder: Path, env: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, env=dict(env), capture_output=True, text=True, timeout=MAVEN_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RetryableError(
            f"mvn took over {MAVEN_TIMEOUT_S} s to fetch Kafka; check the network", after_s=60
        ) from error
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-10:])
        raise RetryableError(f"mvn could not fetch Apache Kafka {KAFKA_VERSION}:\n{said}", after_s=60)


def check_digests(folder: Path, digests: Path = DIGESTS) -> None:
    """Raises CorruptStateError where a folder does not hold exactly the pinned jars."""
    lines = (line.split() for line in digests.read_text(encoding="ascii").splitlines())
    wanted = {name: digest for digest, name in lines}
    found = {jar.name: hashlib.sha256(jar.read_bytes()).hexdigest() for jar in folder.glob("*.jar")}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise CorruptStateError(
                f"{name}: digest {found.get(name, 'none: it is missing')}, pinned {wanted.get(name, 'none')}; the "
                "repository that Maven asked gave something else; check its settings"
            )
