#!/usr/bin/env python3
"""A cloudflared that does what the facts say of the real one, and misbehaves on request.

It takes the arguments that the supervisor gives, reads its token from a file, tells on its metrics port whether it is
ready, and ends on TERM, after its grace when something is in flight. What it is to do stands in files beside the token:

  ready    the status of /ready; 200 without it
  exit     it ends at once with this status
  flight   something is in flight: TERM takes the whole grace
  starts   written by it: a line for each start, with the pid, the token and the arguments
  ends     written by it: a line for each TERM
"""

import http.server
import json
import os
import signal
import sys
import threading
import time


def log(level, text):
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), level, text, file=sys.stderr, flush=True)


def usage(text):
    print("Incorrect Usage:", text, file=sys.stderr)
    sys.exit(255)


def arguments(words):
    if words == ["--version"]:
        print("cloudflared version 2026.8.2 (built 2026-08-20-1200 UTC)")
        sys.exit(0)
    if words[:2] != ["--no-autoupdate", "tunnel"]:
        usage("tunnel is not asked for")
    given, words = {}, words[2:]
    while words:
        word = words.pop(0)
        if word == "run":
            continue
        if word not in ("--metrics", "--grace-period", "--protocol", "--token-file") or not words:
            usage(word)
        given[word] = words.pop(0)
    return given


def main():
    given = arguments(sys.argv[1:])
    with open(given["--token-file"], encoding="utf-8") as file:
        token = file.read().strip()
    folder = os.path.dirname(given["--token-file"])

    def asked(name):
        try:
            with open(os.path.join(folder, name), encoding="utf-8") as file:
                return file.read().strip()
        except FileNotFoundError:
            return None

    def note(name, text):
        with open(os.path.join(folder, name), "a", encoding="utf-8") as file:
            file.write(text + "\n")

    note("starts", json.dumps({"pid": os.getpid(), "token": token, "args": sys.argv[1:]}))
    if asked("exit") is not None:
        log("ERR", "there are no free edge addresses left to resolve to")
        sys.exit(int(asked("exit")))

    class Metrics(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status = int(asked("ready") or 200) if self.path == "/ready" else 404
            body = json.dumps({"status": status, "readyConnections": 4 if status == 200 else 0}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    host, port = given["--metrics"].rsplit(":", 1)
    try:
        server = http.server.ThreadingHTTPServer((host, int(port)), Metrics)
    except OSError as error:
        log("ERR", f"Error opening metrics server listener error={error}")
        sys.exit(1)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    log("INF", "Registered tunnel connection connIndex=0")
    over.wait()
    note("ends", "TERM")
    if asked("flight") is not None:
        time.sleep(float(given["--grace-period"].removesuffix("s")))
    log("INF", "Tunnel server stopped")


main()
