{{/* Handrail's configuration with what only the chart knows, as JSON; refuses what could not work in a cluster. */}}
{{- define "handrail.config" -}}
{{- $config := deepCopy .Values.config }}
{{- $admin := merge (dict) (default (dict) $config.admin) (dict "listen" "0.0.0.0:9464") }}
{{- $_ := set $config "admin" $admin }}
{{- if .Values.schemas }}
{{- $_ := set $config "schemas" (merge (dict) (default (dict) $config.schemas) (dict "directory" "schemas")) }}
{{- end }}
{{- if .Values.rules }}
{{- $rules := default (dict) $config.rules }}
{{- $files := list }}
{{- range $name := keys .Values.rules | sortAlpha }}{{ $files = append $files (printf "rules/%s.yaml" $name) }}{{ end }}
{{- $_ := set $config "rules" (merge (dict "files" (concat (default (list) $rules.files) $files)) $rules) }}
{{- end }}
{{- with $config.registry }}
{{- $_ := set $config "registry" (merge (dict) . (dict "cache" "/var/lib/handrail/registry-cache")) }}
{{- if and .sqlite (not (hasPrefix "/var/lib/handrail/" .sqlite)) }}
{{- fail (printf "config.registry.sqlite: %s is not on a disk; name a file below /var/lib/handrail/" .sqlite) }}
{{- end }}
{{- if and $.Values.schemas (or .sqlite .remote) }}
{{- fail "schemas: config.registry has schemas from elsewhere; keep one of them" }}
{{- end }}
{{- if and .sqlite (not (and $.Values.gateway.enabled $.Values.persistence.enabled)) }}
{{- fail "config.registry.sqlite: without a disk it would be lost with the pod; use a gateway and set persistence.enabled" }}
{{- end }}
{{- end }}
{{- $dsn := default "" (default (dict) $config.clickhouse).dsn }}
{{- if and (hasPrefix "chdb:" $dsn) (not (and .Values.gateway.enabled .Values.persistence.enabled)) }}
{{- fail "config.clickhouse.dsn: without a disk what it holds would be lost with the pod; use a gateway and set persistence.enabled" }}
{{- end }}
{{- if and .Values.gateway.enabled .Values.persistence.enabled (gt (int .Values.replicas) 1) }}
{{- fail "replicas: several pods cannot share one disk; set replicas to 1, or persistence.enabled to false" }}
{{- end }}
{{- toJson $config }}
{{- end }}

{{/* Every address that Handrail listens on, as a JSON list of {name, key, port, near}; `near`: only the pod itself reaches it. */}}
{{- define "handrail.listeners" -}}
{{- $config := include "handrail.config" . | fromJson }}
{{- $found := list }}
{{- range $number, $route := default (list) $config.routes }}
{{- $found = append $found (list (printf "route-%d" $number) (printf "routes[%d].listen" $number) $route.listen) }}
{{- end }}
{{- with $config.forward }}{{ $found = append $found (list "forward" "forward.listen" .listen) }}{{ end }}
{{- range $number, $store := default (list) $config.stores }}
{{- range $place, $listener := default (list) $store.listeners }}
{{- $key := printf "stores[%d].listeners[%d].listen" $number $place }}
{{- $found = append $found (list (printf "store-%d-%d" $number $place) $key $listener.listen) }}
{{- end }}
{{- end }}
{{- range $number, $bus := default (list) $config.buses }}
{{- $found = append $found (list (printf "bus-%d" $number) (printf "buses[%d].listen" $number) $bus.listen) }}
{{- end }}
{{- with $config.registry }}
{{- if .listen }}{{ $found = append $found (list "registry" "registry.listen" .listen) }}{{ end }}
{{- end }}
{{- with $config.otlp }}
{{- if .http }}{{ $found = append $found (list "otlp-http" "otlp.http" .http) }}{{ end }}
{{- if .grpc }}{{ $found = append $found (list "otlp-grpc" "otlp.grpc" .grpc) }}{{ end }}
{{- end }}
{{- $found = append $found (list "admin" "admin.listen" $config.admin.listen) }}
{{- $taken := dict }}
{{- $listeners := list }}
{{- range $each := $found }}
{{- $key := printf "config.%s" (index $each 1) }}
{{- $listen := index $each 2 | default "" | toString }}
{{- $port := regexFind "[0-9]+$" $listen }}
{{- if or (not $port) (eq $port "0") }}{{ fail (printf "%s: %q has no port; write 0.0.0.0:PORT" $key $listen) }}{{ end }}
{{- if hasKey $taken $port }}{{ fail (printf "%s: port %s is that of %s; choose another" $key $port (get $taken $port)) }}{{ end }}
{{- $_ := set $taken $port $key }}
{{- $host := trimSuffix (printf ":%s" $port) $listen }}
{{- $is_near := or (hasPrefix "127." $host) (eq $host "localhost") (eq $host "[::1]") }}
{{- if and $is_near (or $.Values.gateway.enabled (eq (index $each 0) "admin")) }}
{{- fail (printf "%s: nobody outside of the pod reaches %s; write 0.0.0.0:%s" $key $listen $port) }}
{{- end }}
{{- $listeners = append $listeners (dict "name" (index $each 0) "key" $key "port" (int $port) "near" $is_near) }}
{{- end }}
{{- if and .Values.gateway.enabled (eq (len $listeners) 1) }}
{{- fail "config: there is nothing to listen on; name routes, forward, stores, buses, registry or otlp" }}
{{- end }}
{{- toJson $listeners }}
{{- end }}

{{/* The names under which schemas and rules lie in the ConfigMap: a key may hold no slash. */}}
{{- define "handrail.schema_key" -}}
{{- if contains "__" (printf "%s%s" .subject .version) }}
{{- fail (printf "schemas.%s: two underscores in a row cannot be part of a name here" .subject) }}
{{- end }}
{{- printf "schema__%s__%s.json" .subject .version }}
{{- end }}
