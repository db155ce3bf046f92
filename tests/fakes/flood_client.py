"""A program that sends large messages without a credential and prints the codes it got: `flood_client PORT METHOD CALLS MEBIBYTES`."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

MIB = 1024 * 1024
AT_ONCE = 4


def main() -> None:
    port, method, calls, mebibytes = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    body = bytes(mebibytes * MIB)
    options = [("grpc.max_send_message_length", 64 * MIB)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel, ThreadPoolExecutor(AT_ONCE) as threads:
        call: Any = channel.unary_unary(method)

        def once(_number: int) -> str:
            try:
                call(body, timeout=20)
            except grpc.RpcError as error:
                ended: Any = error
                return str(ended.code().name)
            return "OK"

        print(*sorted(set(threads.map(once, range(calls)))))


if __name__ == "__main__":
    main()
