# OpenBao beside Leasehold on one machine (docker-compose.yml). To try things out, or as a start for a real server:
# a real one has TLS on its listener, three nodes, and an auto-unseal.
ui           = false
api_addr     = "http://openbao:8200"
cluster_addr = "http://openbao:8201"

storage "raft" {
  path    = "/openbao/file"
  node_id = "openbao-0"
}

listener "tcp" {
  address     = "0.0.0.0:8200"
  # reached inside the Compose network and through 127.0.0.1 only
  tls_disable = true
}

# Two devices, as OpenBao advises: a request is answered as long as one of them can be written.
# Leasehold reads the first; 0640 lets it in through the files' group.
audit "file" "file-a" {
  options {
    file_path             = "/openbao/logs/audit-a.log"
    mode                  = "0640"
    elide_list_responses  = "true"
  }
}

audit "file" "file-b" {
  options {
    file_path             = "/openbao/logs/audit-b.log"
    mode                  = "0640"
    elide_list_responses  = "true"
  }
}
