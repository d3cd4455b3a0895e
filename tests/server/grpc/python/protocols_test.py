# SPDX-License-Identifier: Apache-2.0
"""A streamed generation by every gRPC protocol, from a language that shares no code with the server:
protocols_test.py SERVER_BINARY. Stubs are made from proto/ in a temporary folder; one client has none
and asks reflection, as grpcurl does; health is probed as Kubernetes does, and watched over a drain."""
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[4]
PROTOS = ["asynctls/v1/worker.proto", "asynctls/v1/generation.proto", "smg/grpc/common/common.proto",
          "vllm/grpc/engine/vllm_engine.proto", "inference/grpc_service.proto"]
SERVER = sys.argv.pop(1)
TEMPORARY = tempfile.TemporaryDirectory()
subprocess.run(["protoc", f"--plugin=protoc-gen-grpc_python={shutil.which('grpc_python_plugin')}",
                f"--proto_path={ROOT / 'proto'}", f"--python_out={TEMPORARY.name}",
                f"--grpc_python_out={TEMPORARY.name}"] + PROTOS, check=True)
sys.path.insert(0, TEMPORARY.name)

import grpc  # noqa: E402
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # noqa: E402

from asynctls.v1 import generation_pb2, generation_pb2_grpc  # noqa: E402
from inference import grpc_service_pb2, grpc_service_pb2_grpc  # noqa: E402
from vllm.grpc.engine import vllm_engine_pb2, vllm_engine_pb2_grpc  # noqa: E402

PROMPT = "The wise lamp"
TOKENS = 16
SERVING, NOT_SERVING = 1, 2


def start_server():
    """The process and its address."""
    command = [SERVER, "--model", str(ROOT / "deploy/models/demo-qwen3"), "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command + ["--metrics-listen", "none"], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        found = re.match(r"asynctls-server listening on (\S+)", line)
        if found:
            # The log is read so that its pipe never fills.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            return process, found.group(1)
    raise SystemExit("the server did not start")


def setUpModule():
    global server, channel
    server, target = start_server()
    channel = grpc.insecure_channel(target)


def tearDownModule():
    channel.close()
    server.terminate()
    server.wait()
    TEMPORARY.cleanup()


def native_request(tokens=TOKENS):
    request = generation_pb2.GenerateRequest(text=PROMPT)
    request.sampling.temperature = 0
    request.stopping.max_tokens = tokens
    request.stopping.ignore_eos = True
    request.response.token_ids = True
    return request


def native(on=None):
    """Ids and text."""
    ids, text = [], ""
    for message in generation_pb2_grpc.GenerationServiceStub(on or channel).Generate(native_request()):
        ids += message.delta.token_ids
        text += message.delta.text
    return ids, text


# grpc.health.v1 by hand: Debian has no package of its stubs. Both messages have one field, number 1.
def health_request(name):
    return b"\x0a" + bytes([len(name)]) + name.encode()


def health_status(response):
    return response[1] if response else 0


def health_check(on, name):
    call = on.unary_unary("/grpc.health.v1.Health/Check", health_request, health_status)
    return call(name)


class ProtocolsTest(unittest.TestCase):
    def test_vllm_streams_the_same_ids(self):
        request = vllm_engine_pb2.GenerateRequest(text=PROMPT, stream=True)
        request.sampling_params.temperature = 0
        request.sampling_params.max_tokens = TOKENS
        request.sampling_params.ignore_eos = True
        request.sampling_params.logprobs = 2
        request.sampling_params.prompt_logprobs = 1
        messages = list(vllm_engine_pb2_grpc.VllmEngineStub(channel).Generate(request))
        chunks = [message.chunk for message in messages[:-1]]
        ids, _ = native()
        self.assertEqual([id for chunk in chunks for id in chunk.token_ids], ids)
        self.assertEqual(messages[-1].complete.finish_reason, "length")
        self.assertEqual(messages[-1].complete.completion_tokens, TOKENS)
        for chunk in chunks:
            self.assertEqual(list(chunk.output_logprobs.token_ids), list(chunk.token_ids))
            for top in chunk.output_logprobs.top_logprobs:
                self.assertEqual(len(top.values), 2)
        prompt = chunks[0].input_logprobs
        self.assertEqual(len(prompt.token_ids), chunks[0].prompt_tokens)
        self.assertEqual([value.HasField("value") for value in prompt.token_logprobs],
                         [False] + [True] * (chunks[0].prompt_tokens - 1))
        self.assertFalse(any(chunk.HasField("input_logprobs") for chunk in chunks[1:]))

    def test_kserve_streams_the_same_text(self):
        request = grpc_service_pb2.ModelInferRequest(model_name="demo-qwen3", id="one")
        text = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
        text.contents.bytes_contents.append(PROMPT.encode())
        stream = request.inputs.add(name="stream", datatype="BOOL", shape=[1])
        stream.contents.bool_contents.append(True)
        request.parameters["temperature"].double_param = 0
        request.parameters["max_tokens"].int64_param = TOKENS
        request.parameters["ignore_eos"].bool_param = True
        second = grpc_service_pb2.ModelInferRequest()
        second.CopyFrom(request)
        second.id = "two"
        texts, finals = {"one": "", "two": ""}, []
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for message in stub.ModelStreamInfer(iter([request, second])):
            self.assertEqual(message.error_message, "")
            response = message.infer_response
            texts[response.id] += response.outputs[0].contents.bytes_contents[0].decode()
            if response.parameters["triton_final_response"].bool_param:
                finals.append(response.id)
        self.assertEqual(texts, {"one": native()[1], "two": native()[1]})
        self.assertEqual(sorted(finals), ["one", "two"])


class ReflectionTest(unittest.TestCase):
    """A client that knows nothing but a service's name."""

    def ask(self, number, value):
        """ServerReflectionRequest{field `number`: value}; fields of the response by number."""
        request = bytes([number << 3 | 2, len(value)]) + value.encode()
        call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
        (response,) = call(iter([request]))
        return self.fields(response)

    def fields(self, message):
        """Length-delimited fields of a message."""
        def varint():
            nonlocal at
            value = shift = 0
            while True:
                value |= (message[at] & 127) << shift
                shift, at = shift + 7, at + 1
                if message[at - 1] < 128:
                    return value
        fields, at = {}, 0
        while at < len(message):
            tag = varint()
            size = varint() if tag & 7 == 2 else 0
            fields.setdefault(tag >> 3, []).append(message[at:at + size])
            at += size
        return fields

    def pool_of(self, symbol):
        pool = descriptor_pool.DescriptorPool()
        files = [descriptor_pb2.FileDescriptorProto.FromString(file)
                 for file in self.fields(self.ask(4, symbol)[4][0])[1]]
        added = set()
        while len(added) < len(files):
            for file in files:
                if file.name not in added and added.issuperset(file.dependency):
                    pool.Add(file)
                    added.add(file.name)
        return pool

    def test_all_services_are_listed(self):
        services = {self.fields(service)[1][0].decode()
                    for service in self.fields(self.ask(7, "*")[6][0])[1]}
        self.assertLessEqual({"asynctls.v1.GenerationService", "vllm.grpc.engine.VllmEngine",
                              "inference.GRPCInferenceService", "grpc.health.v1.Health"}, services)

    def test_streams_a_generation_knowing_only_the_name(self):
        pool = self.pool_of("asynctls.v1.GenerationService")
        service = pool.FindServiceByName("asynctls.v1.GenerationService")
        method = service.FindMethodByName("Generate")
        factory = message_factory.MessageFactory(pool)
        request = factory.GetPrototype(method.input_type)
        response = factory.GetPrototype(method.output_type)
        call = channel.unary_stream(f"/{service.full_name}/{method.name}", request.SerializeToString,
                                    response.FromString)
        message = request(text=PROMPT)
        message.sampling.temperature = 0
        message.stopping.max_tokens = TOKENS
        message.stopping.ignore_eos = True
        self.assertEqual("".join(part.delta.text for part in call(message)), native()[1])


class HealthTest(unittest.TestCase):
    def test_check_knows_every_name(self):
        for name in ["", "liveness", "readiness", "startup", "asynctls.v1.GenerationService",
                     "vllm.grpc.engine.VllmEngine", "inference.GRPCInferenceService"]:
            self.assertEqual(health_check(channel, name), SERVING, name)
        with self.assertRaises(grpc.RpcError) as raised:
            health_check(channel, "nobody")
        self.assertEqual(raised.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_watch_stays_open_and_sees_the_drain(self):
        process, target = start_server()
        with grpc.insecure_channel(target) as mine:
            call = mine.unary_stream("/grpc.health.v1.Health/Watch", health_request, health_status)
            watch = call("vllm.grpc.engine.VllmEngine")
            self.assertEqual(next(watch), SERVING)
            stub = generation_pb2_grpc.GenerationServiceStub(mine)
            running = stub.Generate(native_request(tokens=400))
            self.assertTrue(next(running).HasField("started"))
            process.send_signal(signal.SIGTERM)
            self.assertEqual(next(watch), NOT_SERVING)  # and no message in between
            self.assertEqual(health_check(mine, "liveness"), SERVING)
            with self.assertRaises(grpc.RpcError) as raised:
                native(mine)
            self.assertEqual(raised.exception.code(), grpc.StatusCode.UNAVAILABLE)
            self.assertEqual(sum(len(message.delta.token_ids) for message in running), 400)
        self.assertEqual(process.wait(timeout=60), 0)


if __name__ == "__main__":
    unittest.main()
