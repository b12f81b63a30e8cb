#!/usr/bin/python3
"""A whole switch through varlink, step by step, with nothing but Python: switch.py 0000:01:00.0 vfio"""

import json
import socket
import sys

device, flavour = sys.argv[1:]
call = {
    "method": "io.vfioflavour.Manager.SetFlavour",
    "parameters": {"device": device, "flavour": flavour},
    "more": True,  # a reply for each step, not only for the last
}
with socket.socket(socket.AF_UNIX) as manager:
    manager.connect("/run/vfio-flavourd/io.vfioflavour.Manager")
    manager.sendall(json.dumps(call).encode() + b"\0")
    data = b""
    while True:
        while b"\0" not in data:
            data += manager.recv(65536) or sys.exit("the daemon has hung up")
        message, _, data = data.partition(b"\0")
        reply = json.loads(message)
        told = reply.get("parameters", {})
        if "error" in reply:
            sys.exit(f"{told.get('message', reply['error'])}\n{told.get('hint', '')}".rstrip())
        if step := told.get("step"):
            print(f"{step['what']}: {step['error'] or 'done'}")
        if outcome := told.get("outcome"):
            print(f"{outcome['device']} is {outcome['flavour']} by {outcome['driver']}: {outcome['reason']}")
            break
