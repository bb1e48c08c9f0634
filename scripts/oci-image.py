"""Puts one static binary into an OCI image layout: oci-image.py OUT.tar REFERENCE BINARY

One uncompressed layer, with the binary and the few directories and files that programs expect. A binary named busybox
gets a link for each of its commands. Owners, times and order are fixed, so the same binary makes the same image.
The form is that of the OCI image specification 1.0 (image-layout, manifest, config).
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def entry(name, kind=tarfile.REGTYPE, mode=0o644, link="", size=0):
    """One tar entry that says nothing of this machine or this minute."""
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.size = kind, mode, link, size
    return info


def add(tar, name, data, mode=0o644):
    tar.addfile(entry(name, mode=mode, size=len(data)), io.BytesIO(data))


def layer(binary, name):
    """The root file system, as a tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for directory in ["bin", "data", "dev", "etc", "proc", "root", "run", "sys", "var"]:
            tar.addfile(entry(directory, tarfile.DIRTYPE, 0o755))
        tar.addfile(entry("tmp", tarfile.DIRTYPE, 0o1777))
        add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
        add(tar, "etc/group", b"root:x:0:\nnogroup:x:65534:\n")
        with open(binary, "rb") as file:
            add(tar, f"bin/{name}", file.read(), 0o755)
        if name == "busybox":
            commands = subprocess.run([binary, "--list"], check=True, capture_output=True, text=True).stdout.split()
            for command in sorted(set(commands) - {"busybox"}):
                tar.addfile(entry(f"bin/{command}", tarfile.SYMTYPE, 0o777, link="busybox"))
    return out.getvalue()


def image(reference, binary):
    """The image layout, as a tar."""
    name = os.path.basename(binary)
    blobs = {}

    def blob(data, media_type, **more):
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data), **more}

    def document(value):
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    start = {"Cmd": ["/bin/sh"]} if name == "busybox" else {"Entrypoint": [f"/bin/{name}"]}
    rootfs = blob(layer(binary, name), "application/vnd.oci.image.layer.v1.tar")
    config = blob(
        document({
            "architecture": ARCHITECTURES[os.uname().machine],
            "os": "linux",
            "config": {"Env": [f"PATH={PATH}"], "WorkingDir": "/", **start},
            "rootfs": {"type": "layers", "diff_ids": [rootfs["digest"]]},
        }),
        "application/vnd.oci.image.config.v1+json",
    )
    manifest = blob(
        document({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config,
            "layers": [rootfs],
        }),
        "application/vnd.oci.image.manifest.v1+json",
        # The specification's annotation is the tag alone; containerd's own holds the whole name.
        annotations={
            "io.containerd.image.name": reference,
            "org.opencontainers.image.ref.name": reference.rsplit(":", 1)[1],
        },
    )

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        add(tar, "oci-layout", document({"imageLayoutVersion": "1.0.0"}))
        add(tar, "index.json", document({"schemaVersion": 2, "manifests": [manifest]}))
        for directory in ["blobs", "blobs/sha256"]:
            tar.addfile(entry(directory, tarfile.DIRTYPE, 0o755))
        for digest, data in sorted(blobs.items()):
            add(tar, f"blobs/sha256/{digest}", data)
    return out.getvalue()


def main():
    out, reference, binary = sys.argv[1:]
    data = image(reference, binary)
    if os.path.exists(out):
        with open(out, "rb") as there:
            if there.read() == data:
                return
    with open(out + ".new", "wb") as new:
        new.write(data)
    os.replace(out + ".new", out)


if __name__ == "__main__":
    main()
