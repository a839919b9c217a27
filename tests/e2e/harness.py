"""Parts shared by the end-to-end tests: network namespaces, agents as real processes, and a gRPC client
that learns the API through server reflection only."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BINARIES = os.environ.get("TWAMP_BINARIES", os.path.join(ROOT, "target", "release"))
AGENT = os.path.join(BINARIES, "twamp-agent")
CTL = os.path.join(BINARIES, "twampctl")
PACKAGE = "twamp.agent.v1"


def sh(*command, check=True):
    """Runs a command; its standard output."""
    done = subprocess.run(command, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def need(*programs):
    """A tool that is missing fails the tests; they never skip."""
    for program in programs:
        if shutil.which(program) is None:
            raise AssertionError(f"{program} is not installed")


class Client:
    """A gRPC client of an agent, by reflection alone."""

    def __init__(self, target, pool=None, default_limits=False, **options):
        limits = [
            ("grpc.max_receive_message_length", 64 << 20),
            ("grpc.max_send_message_length", 128 << 20),
        ]
        # On a Unix socket grpcio takes the path for the authority, which HTTP/2 does not allow.
        channel_options = [
            *([] if default_limits else limits),
            ("grpc.default_authority", "localhost"),
            # A channel of its own does not wait out the failures of another one.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self.channel = grpc.insecure_channel(target, options=channel_options, **options)
        grpc.channel_ready_future(self.channel).result(timeout=20)
        # A shared pool saves the reflection requests.
        self.pool = pool or DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        self.followed = []

    def follow(self, stream, function):
        """Runs a function that reads a stream in a thread, which ends before the channel is closed."""
        thread = threading.Thread(target=function, daemon=True)
        self.followed.append((stream, thread))
        thread.start()
        return thread

    def close(self):
        # A thread that reads from a channel while it is closed can crash the interpreter.
        for stream, thread in self.followed:
            stream.cancel()
            thread.join(10)
        self.followed.clear()
        self.channel.close()

    def method(self, service, name, package=PACKAGE):
        descriptor = self.pool.FindServiceByName(f"{package}.{service}").methods_by_name[name]
        request = GetMessageClass(descriptor.input_type)
        answer = GetMessageClass(descriptor.output_type)
        kind = (
            self.channel.unary_stream if descriptor.server_streaming else self.channel.unary_unary
        )
        call = kind(
            f"/{package}.{service}/{name}",
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )
        return request, call

    def call(self, service, method, fields=None, package=PACKAGE, timeout=20):
        """Calls a method with a request from a dict; the answer as a dict with all fields, of all pages
        unless one of them is asked for."""
        request, call = self.method(service, method, package)
        fields = fields or {}
        whole = answer = call(json_format.ParseDict(fields, request()), timeout=timeout)
        one_page = "page_size" in fields or "page_token" in fields
        token = getattr(answer, "next_page_token", "")
        while token and not one_page:
            answer = call(json_format.ParseDict({**fields, "page_token": token}, request()), timeout=timeout)
            token = answer.next_page_token
            whole.MergeFrom(answer)
        answer = to_dict(whole)
        if not one_page:
            answer.pop("next_page_token", None)
        return answer

    def stream(self, fields=None):
        """Opens StreamRecords; an iterator of messages, to be cancelled."""
        request, call = self.method("ResultsService", "StreamRecords")
        return call(json_format.ParseDict(fields or {}, request()))

    def apply(self, config, **fields):
        return self.call("ConfigService", "ApplyConfig", {"config": config, **fields})

    def refused(self, config, **fields):
        """Applies what must be refused: the code, the message, and violations by field."""
        try:
            self.apply(config, **fields)
        except grpc.RpcError as error:
            return error.code(), error.details(), violations(error)
        raise AssertionError("it was applied")

    def connection(self, name):
        answer = self.call("ClientService", "ListConnections", {"names": [name]})
        return answer["connections"][0]

    def records(self, **fields):
        """All stored records, page by page."""
        found, token = [], ""
        while True:
            page = self.call(
                "ResultsService",
                "ListRecords",
                {"page_size": 1000, "page_token": token, **fields},
            )
            found += page["records"]
            token = page["next_page_token"]
            if not token:
                return found


def to_dict(message):
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def violations(error):
    found = {}
    status = rpc_status.from_call(error)
    for detail in status.details if status else []:
        from google.rpc import error_details_pb2

        request = error_details_pb2.BadRequest()
        precondition = error_details_pb2.PreconditionFailure()
        if detail.Unpack(request):
            found.update({v.field: v.description for v in request.field_violations})
        elif detail.Unpack(precondition):
            found.update({v.subject: v.description for v in precondition.violations})
    return found


class Agent:
    """A twamp-agent process, in a namespace or not."""

    def __init__(self, directory, namespace=None, port=9862, socket_path=None, arguments=()):
        self.directory = directory
        self.namespace = namespace
        self.port = port
        self.log_path = directory.rstrip("/") + ".log"
        self.arguments = list(arguments)
        self.environment = {}
        self.wrapper = []
        self.process = None
        self.clients = []

    def command(self, *command):
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        return inside + list(command)

    def start(self):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                self.command(
                    *self.wrapper, AGENT, "run", "--state-dir", self.directory,
                    "--listen", f"127.0.0.1:{self.port}", *self.arguments,
                ),
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
            )
        return self

    def client(self):
        """A client; from inside the namespace by a relay over a Unix socket."""
        target = f"127.0.0.1:{self.port}" if self.namespace is None else f"unix:{self.socket}"
        self.clients.append(Client(target))
        return self.clients[-1]

    def close_clients(self):
        while self.clients:
            self.clients.pop().close()

    @property
    def socket(self):
        return self.directory.rstrip("/") + ".sock"

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError("the agent did not end on SIGTERM")
        return self.process.returncode

    def log(self):
        with open(self.log_path, errors="replace") as log:
            return log.read()

    def memory_kib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                if line.startswith("VmRSS"):
                    return int(line.split()[1])


class Case(unittest.TestCase):
    """A test with a directory of its own, and everything that it started ended."""

    maxDiff = None

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="twamp-e2e-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        # Cleaned up before the directory goes.
        self.stack = contextlib.ExitStack()
        self.addCleanup(self.stack.close)
        self.agents = []

    def agent(self, name="agent", namespace=None, port=None, settings="", arguments=(), environment=None,
              top="", files=None):
        """Starts an agent. Its API is also on a Unix socket, which namespaces do not divide."""
        directory = os.path.join(self.directory, name)
        agent = Agent(directory, namespace, port or free_port())
        path = directory + ".toml"
        with open(path, "w") as file:
            file.write(f'{top}[api]\nunix_socket = "{agent.socket}"\n{settings}')
        agent.arguments = ["--settings", path, *arguments]
        agent.environment = environment or {}
        if files:
            # Without the capability to raise it.
            agent.wrapper = ["prlimit", f"--nofile={files}:{files}", "setpriv", "--bounding-set=-sys_resource",
                             "--inh-caps=-sys_resource"]
        agent.start()
        self.agents.append(agent)
        self.stack.callback(agent.stop)
        self.stack.callback(agent.close_clients)
        return agent

    def tearDown(self):
        failed = self._outcome is not None and any(
            error for _, error in getattr(self._outcome, "errors", []) or []
        )
        if failed or os.environ.get("TWAMP_LOGS"):
            for agent in self.agents:
                print(f"--- {agent.log_path}\n{agent.log()[-8000:]}")

    def wait_for(self, what, seconds=20, every=0.1, told=None):
        """Waits until `what` returns a true value, and returns it; `told` describes the failure otherwise."""
        end = time.monotonic() + seconds
        while True:
            value = what()
            if value:
                return value
            if time.monotonic() > end:
                value = told() if told else value
                raise AssertionError(f"not within {seconds} s: last value {value!r}")
            time.sleep(every)


class TwoHosts(Case):
    """Two namespaces with a link between them."""

    A, B = "10.99.0.1", "10.99.0.2"
    A6, B6 = "fd99::1", "fd99::2"

    def setUp(self):
        super().setUp()
        need("ip")
        unique = f"{os.getpid()}{threading.get_ident() % 997}"
        self.a, self.b = f"twa{unique}", f"twb{unique}"
        for namespace in (self.a, self.b):
            sh("ip", "netns", "add", namespace)
            self.stack.callback(sh, "ip", "netns", "delete", namespace, check=False)
            self.inside(namespace, "ip", "link", "set", "lo", "up")
        sh("ip", "-n", self.a, "link", "add", "veth0", "type", "veth",
           "peer", "name", "veth0", "netns", self.b)
        for namespace, v4, v6 in ((self.a, self.A, self.A6), (self.b, self.B, self.B6)):
            sh("ip", "-n", namespace, "address", "add", f"{v4}/24", "dev", "veth0")
            sh("ip", "-n", namespace, "address", "add", f"{v6}/64", "dev", "veth0", "nodad")
            sh("ip", "-n", namespace, "link", "set", "veth0", "up")

    @staticmethod
    def inside(namespace, *command, check=True):
        return sh("ip", "netns", "exec", namespace, *command, check=check)

    def link(self, namespace, state):
        sh("ip", "-n", namespace, "link", "set", "veth0", state)

    @contextlib.contextmanager
    def capture(self, namespace, path):
        """Captures all packets of the link while the body runs."""
        need("dumpcap", "tshark")
        process = subprocess.Popen(
            ["ip", "netns", "exec", namespace, "dumpcap", "-q", "-i", "veth0", "-w", path],
            stderr=subprocess.PIPE,
        )
        # dumpcap says so when it has begun.
        for line in process.stderr:
            if b"File:" in line:
                break
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        try:
            yield
        finally:
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            process.wait(timeout=10)
            drain.join()
            process.stderr.close()


def free_port():
    """A port that is free for TCP and UDP."""
    while True:
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            port = tcp.getsockname()[1]
            with contextlib.suppress(OSError):
                udp.bind(("127.0.0.1", port))
                return port


def dial(port, seconds=10):
    """A connection to a server on loopback, which opens its sockets a moment after the answer to the
    commit."""
    end = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=10)
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def server(*prefixes, port=862, **fields):
    """A server for whoever is in the prefixes."""
    return {
        "listen": [{"address": "::", "port": port}],
        "client_list": [{"name": "all", "prefixes": list(prefixes) or ["0.0.0.0/0", "::/0"]}],
        **fields,
    }


def connection(name, target, sessions=None, **fields):
    return {
        "name": name,
        "target_address": target,
        "test_sessions": sessions or [session("s1")],
        **fields,
    }


def session(name, **fields):
    return {"name": name, "probe_count": 5, "probe_interval": "0.1s", "loss_timeout": "0.5s", **fields}


def client(*connections):
    return {"control_connections": list(connections)}


def tests(records, name=None, outcome=None):
    """Results of tests, with the cursor and time of their records."""
    found = []
    for record in records:
        result = record.get("test_result")
        if result and (name is None or record["connection"] == name):
            if outcome is None or result["outcome"] == f"TEST_OUTCOME_{outcome}":
                found.append({**result, "session": record["session"], "cursor": int(record["cursor"]), "time": record["time"]})
    return found


def events(records, kind):
    return [
        {**record["event"], "time": record["time"], "cursor": int(record["cursor"])}
        for record in records
        if record.get("event", {}).get("type") == f"EVENT_TYPE_{kind}"
    ]


def probes(records):
    """Single probes of all records."""
    return [p for r in records for p in r.get("probe_results", {}).get("probes", [])]


def seconds(timestamp):
    """A timestamp of JSON as seconds since 1970."""
    from google.protobuf.timestamp_pb2 import Timestamp

    value = Timestamp()
    value.FromJsonString(timestamp)
    return value.ToNanoseconds() / 1e9


def dump(value):
    return json.dumps(value, indent=1)
