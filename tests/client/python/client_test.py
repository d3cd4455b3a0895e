# SPDX-License-Identifier: Apache-2.0
"""The Python package against the real server with the demo model: client_test.py SERVER_BINARY.
Uses whatever grpcio the interpreter has; the stubs are made in a temporary folder."""
import asyncio
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "client" / "python"
SERVER = sys.argv.pop(1)
TEMPORARY = tempfile.TemporaryDirectory()

shutil.copytree(PACKAGE / "asynctls", pathlib.Path(TEMPORARY.name) / "asynctls", ignore=shutil.ignore_patterns("v1"))
subprocess.run([sys.executable, str(PACKAGE / "generate_stubs.py"), TEMPORARY.name], check=True)
sys.path.insert(0, TEMPORARY.name)

import grpc  # noqa: E402
from google.protobuf import any_pb2  # noqa: E402

from asynctls import AsyncClient, AsyncTlsError, Client, build_request, errors  # noqa: E402
from asynctls.v1 import worker_pb2  # noqa: E402

QUESTION = [{"role": "user", "content": "Hello"}]
LONG = "a long prompt " * 3000  # seconds of prefill at the least


def start_server():
    """The process and its address."""
    command = [SERVER, "--model", str(ROOT / "deploy/models/demo-qwen3"), "--listen", "127.0.0.1:0"]
    server = subprocess.Popen(command + ["--metrics-listen", "none"], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
    for line in server.stdout:
        found = re.match(r"asynctls-server listening on (\S+)", line)
        if found:
            return server, found.group(1)
    raise SystemExit("the server did not start")


def setUpModule():
    global server, target
    server, target = start_server()


def tearDownModule():
    server.terminate()
    server.communicate()
    TEMPORARY.cleanup()


class ClientTest(unittest.TestCase):
    def setUp(self):
        self.client = Client(target)
        self.addCleanup(self.client.close)

    def test_streams_deltas_that_make_the_reply(self):
        with self.client.generate("Once", max_tokens=8, temperature=0, token_ids=True) as stream:
            deltas = list(stream)
        reply = stream.completions[0]
        self.assertEqual("".join(d.text for d in deltas), reply.text)
        self.assertEqual(len(reply.token_ids), reply.usage.completion_tokens)
        self.assertIn(reply.finish_reason, ("stop", "length"))
        self.assertTrue(stream.started.request_id)
        ids = self.client.tokenize("Once")
        again = self.client.generate(ids, max_tokens=8, temperature=0)
        list(again)
        self.assertEqual(again.completions[0].text, reply.text)

    def test_chats(self):
        one = self.client.chat(QUESTION, max_tokens=8, temperature=0, mode="exact", budget=256)
        self.assertTrue(one.text)
        ids, text = self.client.tokenize_chat(QUESTION)
        self.assertIn("Hello", text)
        self.assertEqual(len(ids), one.usage.prompt_tokens)

    def test_tokenizes_and_back(self):
        self.assertEqual(self.client.detokenize(self.client.tokenize("some words")), "some words")
        self.assertEqual(self.client.model_info().model.name, "demo-qwen3")

    def test_errors_are_exceptions(self):
        with self.assertRaises(AsyncTlsError) as raised:
            list(self.client.generate("x", temperature=-1))
        self.assertIs(raised.exception.code, grpc.StatusCode.INVALID_ARGUMENT)
        self.assertIn("temperature", str(raised.exception))
        with self.assertRaises(AsyncTlsError):
            self.client.detokenize([2**32 - 1])
        with Client("127.0.0.1:1") as nobody, self.assertRaises(AsyncTlsError) as raised:
            nobody.model_info()
        self.assertIs(raised.exception.code, grpc.StatusCode.UNAVAILABLE)

    def test_deadlines_and_cancels(self):
        with self.assertRaises(AsyncTlsError) as raised:
            list(self.client.generate(LONG, timeout=0.05))
        self.assertIs(raised.exception.code, grpc.StatusCode.DEADLINE_EXCEEDED)
        stream = self.client.generate(LONG)
        stream.close()
        with self.assertRaises(AsyncTlsError) as raised:
            next(stream)
        self.assertIs(raised.exception.code, grpc.StatusCode.CANCELLED)

    def test_aborts(self):
        ended = threading.Event()

        def abort():
            while not ended.wait(0.01):  # the id is unknown until the request has arrived
                self.client.abort("to-abort", "unknown")

        thread = threading.Thread(target=abort)
        thread.start()
        stream = self.client.generate(LONG, request_id="to-abort")
        try:
            self.assertEqual(list(stream), [])
        finally:
            ended.set()
            thread.join()
        self.assertEqual(stream.completions[0].finish_reason, "aborted")


class AsyncClientTest(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.client = AsyncClient(target)
        self.addAsyncCleanup(self.client.close)

    async def test_many_at_once_are_as_one_alone(self):
        alone = await self.client.chat(QUESTION, max_tokens=8, temperature=0)
        many = [self.client.chat(QUESTION, max_tokens=8, temperature=0) for _ in range(8)]
        for reply in await asyncio.gather(*many):
            self.assertEqual(reply.text, alone.text)

    async def test_streams(self):
        text = ""
        async with self.client.generate("Once", max_tokens=8, temperature=0) as stream:
            async for delta in stream:
                text += delta.text
        self.assertEqual(stream.completions[0].text, text)
        self.assertEqual(await self.client.detokenize(await self.client.tokenize("two words")), "two words")
        self.assertIn("Hello", (await self.client.tokenize_chat(QUESTION))[1])
        self.assertGreater((await self.client.model_info()).kv_blocks, 0)
        await self.client.abort("unknown")

    async def test_errors_deadlines_and_cancels(self):
        for arguments, code in (
            ({"prompt": "x", "top_p": 5}, grpc.StatusCode.INVALID_ARGUMENT),
            ({"prompt": LONG, "timeout": 0.05}, grpc.StatusCode.DEADLINE_EXCEEDED),
        ):
            with self.assertRaises(AsyncTlsError) as raised:
                async for _ in self.client.generate(**arguments):
                    pass
            self.assertIs(raised.exception.code, code)
        async with self.client.generate(LONG) as stream:
            pass
        with self.assertRaises((AsyncTlsError, asyncio.CancelledError)):
            await stream.__anext__()


class RequestTest(unittest.TestCase):
    def test_fields_find_their_message(self):
        request = build_request(
            [1, 2], temperature=0, logit_bias={5: -1.5}, stop=["a", "b"], max_tokens=3, mode="lagged",
            sparse_top_p=0.5, top_p=0.25, log_probs=True, priority=-2, seed=None)
        self.assertEqual(list(request.token_ids.ids), [1, 2])
        self.assertTrue(request.sampling.HasField("temperature"))
        self.assertFalse(request.sampling.HasField("seed"))
        self.assertEqual(dict(request.sampling.logit_bias), {5: -1.5})
        self.assertEqual(list(request.stopping.stop), ["a", "b"])
        self.assertEqual(request.sparse.mode, worker_pb2.ATTENTION_MODE_LAGGED)
        self.assertEqual((request.sparse.top_p, request.sampling.top_p), (0.5, 0.25))
        self.assertEqual(request.priority, -2)
        self.assertTrue(build_request(QUESTION, thinking=False).chat.HasField("enable_thinking"))

    def test_unknown_fields_are_errors(self):
        for arguments in ({"prompt": "x", "speed": 3}, {"prompt": "x", "thinking": True}):
            with self.assertRaises(TypeError):
                build_request(**arguments)


class ErrorDetailsTest(unittest.TestCase):
    def test_google_rpc_details_are_read(self):
        m = errors._MESSAGES
        status = m["Status"](code=3, message="bad")
        bad = m["BadRequest"]()
        bad.field_violations.add(field="sampling.temperature", description="too high")
        info = m["ErrorInfo"](reason="QUEUE_FULL", domain="asynctls")
        info.metadata.add(key="limit", value="256")
        retry = m["RetryInfo"]()
        retry.retry_delay.seconds, retry.retry_delay.nanos = 1, 500000000
        for name, message in (("BadRequest", bad), ("ErrorInfo", info), ("RetryInfo", retry)):
            url = f"type.googleapis.com/google.rpc.{name}"
            packed = any_pb2.Any(type_url=url, value=message.SerializeToString())
            status.details.add(type_url=packed.type_url, value=packed.value)

        class Failure:
            code = staticmethod(lambda: grpc.StatusCode.RESOURCE_EXHAUSTED)
            details = staticmethod(lambda: "full")
            trailing_metadata = staticmethod(
                lambda: [("grpc-status-details-bin", status.SerializeToString())])

        error = errors.from_rpc(Failure())
        self.assertEqual(error.violations, [errors.FieldViolation("sampling.temperature", "too high")])
        self.assertEqual((error.reason, error.metadata), ("QUEUE_FULL", {"limit": "256"}))
        self.assertEqual(error.retry_after, 1.5)
        self.assertEqual(str(error), "RESOURCE_EXHAUSTED: full")


class ExamplesTest(unittest.TestCase):
    def run_example(self, *arguments, stdin=""):
        environment = {"PYTHONPATH": TEMPORARY.name, "PATH": "/usr/bin:/bin"}
        script, *rest = arguments
        command = [sys.executable, str(PACKAGE / "examples" / script), target, *rest]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_they_run(self):
        self.assertTrue(self.run_example("generate.py", "Hello"))
        self.assertGreaterEqual(self.run_example("chat.py", stdin="Hello\nAgain\n").count("\n"), 2)
        self.assertIn("4 replies", self.run_example("async_many.py", "4"))


if __name__ == "__main__":
    unittest.main()
