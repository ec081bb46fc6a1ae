"""An RTSP server for tests, run by a Python that has GStreamer (see `tests/rtsp_server.py`).

Reads one line of JSON from stdin, prints `port N` when it serves, and ends with stdin.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import Gio, GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

ROLE = "viewer"
TRANSPORTS = {
    "udp": GstRtsp.RTSPLowerTrans.UDP,
    "tcp": GstRtsp.RTSPLowerTrans.TCP,
    "both": GstRtsp.RTSPLowerTrans.UDP | GstRtsp.RTSPLowerTrans.TCP,
}


def serve(wanted: dict[str, Any]) -> None:
    """Serve `wanted["mounts"]`, launch lines by path, until stdin ends."""
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(wanted["port"]))
    if wanted["users"] or wanted["certificate"]:
        server.set_auth(auth(wanted))
    mounts = server.get_mount_points()
    for path, launch in wanted["mounts"].items():
        mounts.add_factory(path, factory(launch, wanted))
    if not server.attach(None):
        sys.exit(f"port {wanted['port']} is taken")
    loop = GLib.MainLoop()
    GLib.io_add_watch(sys.stdin, GLib.IO_HUP | GLib.IO_ERR, lambda *_: loop.quit())
    print("port", server.get_bound_port(), flush=True)
    loop.run()


def factory(launch: str, wanted: dict[str, Any]) -> GstRtspServer.RTSPMediaFactory:
    """What makes the media of one mount; all clients share a picture.

    Shared media answer 503 while they end, so that sound alone, which is asked for again at once, is not.
    """
    made = GstRtspServer.RTSPMediaFactory()
    made.set_launch(launch)
    made.set_shared("audiotestsrc" not in launch.partition("!")[0])
    made.set_protocols(TRANSPORTS[wanted["transport"]])
    if wanted["users"] or wanted["certificate"]:
        permissions = GstRtspServer.RTSPPermissions()
        for permission in ("media.factory.access", "media.factory.construct"):
            permissions.add_permission_for_role(ROLE, permission, True)
        made.set_permissions(permissions)
    return made


def auth(wanted: dict[str, Any]) -> GstRtspServer.RTSPAuth:
    """Who is let in, how they say who they are, and the certificate for TLS."""
    guard = GstRtspServer.RTSPAuth()
    if wanted["certificate"]:
        guard.set_tls_certificate(Gio.TlsCertificate.new_from_file(wanted["certificate"]))
    if not wanted["users"]:
        guard.set_default_token(token())
    for user, password in wanted["users"].items():
        if wanted["scheme"] == "digest":
            guard.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
            guard.add_digest(user, password, token())
        else:
            guard.set_supported_methods(GstRtsp.RTSPAuthMethod.BASIC)
            guard.add_basic(GstRtspServer.RTSPAuth.make_basic(user, password), token())
    return guard


def token() -> GstRtspServer.RTSPToken:
    """What somebody has who may look."""
    made = GstRtspServer.RTSPToken()
    made.set_string("media.factory.role", ROLE)
    return made


if __name__ == "__main__":
    serve(json.loads(sys.stdin.readline()))
