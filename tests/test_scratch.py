import json, time
from pathlib import Path
from tests.world import World
def test_scratch(world: World):
    w = world
    pod = w.pod("storefront"); pod.log_in()
    jp = [s for s in ("storefront","orders-api","billing","payments")]
    from demo.workloads import APPLICATIONS
    j = next(a for a in APPLICATIONS if a.method == "jwt" and a.program == "agent")
    jpod = w.pod(j.service_account); jpod.log_in()
    c = w.admin
    for p in (pod, jpod):
        me = c.auth.token.lookup(p.token)["data"]
        print(c.read(f"identity/entity/id/{me['entity_id']}")["data"]["aliases"])
        c.write_data(f"identity/entity/id/{me['entity_id']}", data={"disabled": True})
        p.token = ""
        try: p.log_in()
        except AssertionError as e: print(e)
    time.sleep(0.3)
    for name, path in w.openbao.audit_logs.items():
        for line in Path(path).read_text().splitlines()[-30:]:
            d = json.loads(line)
            if "login" in d["request"]["path"]:
                print("LOG", line[:1500])
        break
