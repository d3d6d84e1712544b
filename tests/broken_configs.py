"""Config files that must be refused: what they hold, and every line `youtu` says of each.

The profiles there are: car and factory.
"""

from __future__ import annotations

BROKEN: tuple[tuple[str | bytes, tuple[str, ...]], ...] = (
    (
        "prot: 1\n",
        ("1:1: prot: unknown key, did you mean service.port",),
    ),
    (
        "servise:\n  port: 80\n",
        ("1:1: servise: unknown key, did you mean service",),
    ),
    (
        "temperature: 0.3\n",
        ("1:1: temperature: unknown key, did you mean sampling.temperature",),
    ),
    (
        "port: 8080\n",
        ("1:1: port: unknown key, did you mean service.port",),
    ),
    (
        "service:\n  prot: 80\n",
        ("2:3: service.prot: unknown key, did you mean service.port",),
    ),
    (
        "service:\n  max-restart-rate: 3/300\n",
        ("2:3: service.max-restart-rate: unknown key, did you mean service.max_restart_rate",),
    ),
    (
        "sampling:\n  Temperature: 0.1\n",
        ("2:3: sampling.Temperature: unknown key, did you mean sampling.temperature",),
    ),
    (
        "sampling:\n  max_tokens: 64\n",
        ("2:3: sampling.max_tokens: unknown key, did you mean sampling.max_new_tokens",),
    ),
    (
        "sampling:\n  zzz: 1\n",
        ("2:3: sampling.zzz: unknown key",),
    ),
    (
        "model:\n  kv_cache_max_pages: 64\n",
        ("2:3: model.kv_cache_max_pages: unknown key, did you mean model.kv_cache_max_page",),
    ),
    (
        "model:\n  kv_cache_max_page: 0\n",
        ("2:22: model.kv_cache_max_page: must be at least 1 (got 0)",),
    ),
    (
        "model:\n  kv_cache_max_page: 64.5\n",
        ("2:22: model.kv_cache_max_page: must be a whole number (got 64.5)",),
    ),
    (
        "model:\n  kv_cache_max_page: 64 pages\n",
        (
            '2:22: model.kv_cache_max_page: must be a whole number (got "64 pages"), did you '
            "mean 64",
        ),
    ),
    (
        "model:\n  name:\n",
        ("2:8: model.name: must be text (got nothing)",),
    ),
    (
        'model:\n  name: ""\n',
        ('2:9: model.name: must not be empty (got "")',),
    ),
    (
        "model:\n  name: 7\n",
        ('2:9: model.name: must be text (got 7), did you mean "7"',),
    ),
    (
        "model: qwen\n",
        ('1:8: model: must be a group of keys (got "qwen")',),
    ),
    (
        "model: [qwen]\n",
        ('1:8: model: must be a group of keys (got ["qwen"])',),
    ),
    (
        "service:\n  port: 99999\n",
        ("2:9: service.port: must be at most 65535 (got 99999)",),
    ),
    (
        "service:\n  port: -1\n",
        ("2:9: service.port: must be at least 0 (got -1)",),
    ),
    (
        'service:\n  port: "8080"\n',
        ('2:9: service.port: must be a whole number (got "8080"), did you mean 8080',),
    ),
    (
        "service:\n  port: http\n",
        ('2:9: service.port: must be a whole number (got "http")',),
    ),
    (
        "service:\n  port: true\n",
        ("2:9: service.port: must be a whole number (got true)",),
    ),
    (
        "service:\n  port: 1e400\n",
        ("2:9: service.port: must be a whole number (got Infinity)",),
    ),
    (
        "service:\n  port: 99999999999999999999999999\n",
        ('2:9: service.port: must be a whole number (got "99999999999999999999999999")',),
    ),
    (
        "service:\n  socket: youtu.sock\n",
        ('2:11: service.socket: must look like an absolute path (got "youtu.sock")',),
    ),
    (
        "service:\n  host: 0.0.0.0\n  api_key: secret\n",
        (
            "2:3: service.host: 0.0.0.0 is not loopback: add the name that clients use to "
            "service.allowed_hosts too",
        ),
    ),
    (
        "service:\n  host: 0.0.0.0\n  allowed_hosts: [box.local]\n",
        ("2:3: service.host: 0.0.0.0 is not loopback: set service.api_key too",),
    ),
    (
        "service:\n  restart_on_failure: yes\n",
        ('2:23: service.restart_on_failure: must be true or false (got "yes"), did you mean true',),
    ),
    (
        "service:\n  restart_on_failure: 1\n",
        ("2:23: service.restart_on_failure: must be true or false (got 1), did you mean true",),
    ),
    (
        "service:\n  max_restart_rate: 3\n",
        ('2:21: service.max_restart_rate: must be text (got 3), did you mean "3"',),
    ),
    (
        "service:\n  max_restart_rate: 3/0\n",
        (
            "2:21: service.max_restart_rate: must look like RESTARTS/SECONDS, such as 3/300 "
            '(got "3/0")',
        ),
    ),
    (
        "service:\n  max_restart_rate: 3 per 5 min\n",
        (
            "2:21: service.max_restart_rate: must look like RESTARTS/SECONDS, such as 3/300 "
            '(got "3 per 5 min")',
        ),
    ),
    (
        "service:\n  allowed_hosts: localhost\n",
        (
            '2:18: service.allowed_hosts: must be a list (got "localhost"), did you mean '
            '["localhost"]',
        ),
    ),
    (
        "service:\n  allowed_hosts: [localhost, 5]\n",
        ('2:30: service.allowed_hosts[1]: must be text (got 5), did you mean "5"',),
    ),
    (
        "service:\n  engine_silence_s: 20s\n",
        ('2:21: service.engine_silence_s: must be a number (got "20s"), did you mean 20',),
    ),
    (
        "service:\n  engine_silence_s: .nan\n",
        ('2:21: service.engine_silence_s: must be a number (got ".nan")',),
    ),
    (
        "service:\n  api_key: 12345\n",
        ("2:12: service.api_key: must be text",),
    ),
    (
        "engine:\n  device: gpu\n",
        ("2:11: engine.device: must be 'auto', 'cpu' or 'cuda' (got \"gpu\"), did you mean cuda",),
    ),
    (
        "engine:\n  device: CUDA\n",
        ("2:11: engine.device: must be 'auto', 'cpu' or 'cuda' (got \"CUDA\"), did you mean cuda",),
    ),
    (
        "engine:\n  dtype: fp16\n",
        (
            "2:10: engine.dtype: must be 'auto', 'float32', 'float16' or 'bfloat16' (got "
            '"fp16"), did you mean float16',
        ),
    ),
    (
        "engine:\n  memory_fraction: 0\n",
        ("2:20: engine.memory_fraction: must be more than 0.0 (got 0)",),
    ),
    (
        "engine:\n  memory_fraction: 70%\n",
        ('2:20: engine.memory_fraction: must be a number (got "70%"), did you mean 0.7',),
    ),
    (
        "engine:\n  max_num_seqs: 64\n  max_step_tokens: 32\n",
        (
            "2:3: engine.max_num_seqs: each answer takes a token a step: 64 of them do not "
            "fit engine.max_step_tokens, 32",
        ),
    ),
    (
        "sampling:\n  temperature: hot\n",
        ('2:16: sampling.temperature: must be a number (got "hot")',),
    ),
    (
        "sampling:\n  temperature: 2.5\n",
        ("2:16: sampling.temperature: must be at most 2.0 (got 2.5)",),
    ),
    (
        "sampling:\n  top_p: 0\n",
        ("2:10: sampling.top_p: must be more than 0.0 (got 0)",),
    ),
    (
        "sampling:\n  seed: -1\n",
        ("2:9: sampling.seed: must be at least 0 (got -1)",),
    ),
    (
        'sampling:\n  stop: "。"\n',
        ('2:9: sampling.stop: must be a list (got "。"), did you mean ["。"]',),
    ),
    (
        "sampling:\n  stop: [。, 1]\n",
        ('2:13: sampling.stop[1]: must be text (got 1), did you mean "1"',),
    ),
    (
        'sampling:\n  stop: [""]\n',
        ('2:10: sampling.stop[0]: must not be empty (got "")',),
    ),
    (
        "sampling:\n  stop: [a, b, c, d, e, f, g, h, i]\n",
        (
            '2:9: sampling.stop: must have at most 8 entries (got ["a", "b", "c", "d", "e", '
            '"f", "g", "h", "i"])',
        ),
    ),
    (
        "sampling:\n  max_new_tokens: 5000\n",
        (
            "2:3: sampling.max_new_tokens: 5000 new tokens by default are more than "
            "bounds.max_new_tokens allows, 4096",
        ),
    ),
    (
        "context:\n  max_tokens: 128\n",
        (
            "2:3: context.max_tokens: 256 new tokens leave no room for a prompt in "
            "context.max_tokens, 128",
        ),
    ),
    (
        "context:\n  max_tokens: 4096\n  window_tokens: 8192\n",
        ("3:3: context.window_tokens: a window of 8192 is larger than context.max_tokens, 4096",),
    ),
    (
        "text:\n  postprocess: on\n",
        ('2:16: text.postprocess: must be true or false (got "on"), did you mean true',),
    ),
    (
        "cache: off\n",
        ('1:8: cache: must be true or false (got "off"), did you mean false',),
    ),
    (
        "profile: Car\n",
        (
            '1:10: profile: no such profile (got "Car"), did you mean car; there are '
            "default, car, factory",
        ),
    ),
    (
        "profile: cart\n",
        (
            '1:10: profile: no such profile (got "cart"), did you mean car; there are '
            "default, car, factory",
        ),
    ),
    (
        "profile: ../../etc/passwd\n",
        (
            '1:10: profile: no such profile (got "../../etc/passwd"); there are default, '
            "car, factory",
        ),
    ),
    (
        "profile: 7\n",
        ('1:10: profile: must be text (got 7), did you mean "7"',),
    ),
    (
        "profile:\n",
        ("1:9: profile: must be text (got nothing)",),
    ),
    (
        "profile: car\nprofile: factory\n",
        ("2:1: profile: given twice; the first is at line 1",),
    ),
    (
        "service:\n  port: 80\nservice:\n  port: 81\n",
        (
            "3:1: service: given twice; the first is at line 1",
            "4:3: service.port: given twice; the first is at line 2",
        ),
    ),
    (
        "a: &x 1\n",
        (
            "1:1: a: unknown key",
            "1:4: a: anchors are not allowed (got &x)",
        ),
    ),
    (
        "sampling: &s\n  top_k: 5\nbounds: *s\n",
        (
            "1:11: sampling: anchors are not allowed (got &s)",
            "3:9: bounds: aliases are not allowed (got *s)",
        ),
    ),
    (
        "sampling:\n  <<: {top_k: 5}\n",
        ("2:3: sampling.<<: unknown key",),
    ),
    (
        "sampling:\n  temperature: !!float 0.1\n",
        ("2:16: sampling.temperature: tags are not allowed (got !!float)",),
    ),
    (
        "model: !!python/object/apply:os.system [ls]\n",
        ("1:8: model: tags are not allowed (got !!python/object/apply:os.system)",),
    ),
    (
        "profile: car\n---\nprofile: factory\n",
        ("2:1: a second document begins here; a file holds one",),
    ),
    (
        "- profile: car\n",
        ("1:1: a settings file holds `key: value` lines",),
    ),
    (
        "car\n",
        ("1:1: a settings file holds `key: value` lines",),
    ),
    (
        "1: car\n",
        ("1:1: a key must be text (got 1)",),
    ),
    (
        "? [profile]\n: car\n",
        ("1:3: a key must be text (got a list, a mapping or an alias)",),
    ),
    (
        "profile car\n",
        ("1:1: a settings file holds `key: value` lines",),
    ),
    (
        "profile: car\n model: x\n",
        ("2:7: not valid YAML: mapping values are not allowed here",),
    ),
    (
        "service:\n\tport: 80\n",
        ("2:1: not valid YAML: found character '\\t' that cannot start any token",),
    ),
    (
        "sampling:\n  stop: [。\nprofile: car\n",
        ("2:9: not valid YAML: expected ',' or ']', but got ':'",),
    ),
    (
        'model:\n  name: "qwen\n',
        ("3:1: not valid YAML: found unexpected end of stream",),
    ),
    (
        "profile: a: b\n",
        ("1:11: not valid YAML: mapping values are not allowed here",),
    ),
    (
        "profile: @car\n",
        ("1:10: not valid YAML: found character '@' that cannot start any token",),
    ),
    (
        "text: {system_prompt: {a: {b: {c: {d: {e: {f: {g: 1}}}}}}}}\n",
        (
            "1:23: text.system_prompt: must be text (got a group of keys)",
            "1:47: text.system_prompt.a.b.c.d.e.f: nested deeper than 8 levels",
        ),
    ),
    (
        "servise: {port: 80}\nsampling:\n  temperature: hot\n  top_kk: 5\n"
        "profile: cart\ncache: no\nprofile: x\n",
        (
            "1:1: servise: unknown key, did you mean service",
            '3:16: sampling.temperature: must be a number (got "hot")',
            "4:3: sampling.top_kk: unknown key, did you mean sampling.top_k",
            '5:10: profile: no such profile (got "cart"), did you mean car; there are '
            "default, car, factory",
            '6:8: cache: must be true or false (got "no"), did you mean false',
            "7:1: profile: given twice; the first is at line 5",
        ),
    ),
    (
        b"profile: c\xffr\n",
        ("1:11: not UTF-8 (byte 0xff); save the file as UTF-8",),
    ),
    (
        b"profile: car\nmodel:\n  name: a\x00b\n",
        ("3:10: a character that may not be in YAML (U+0000)",),
    ),
    (
        b"\xff\xfep\x00",
        ("1:1: not UTF-8 (byte 0xff); save the file as UTF-8",),
    ),
    (
        b"#" * (128 * 1024) + b"\n",
        ("1:1: a settings file may have at most 128 KiB",),
    ),
)
