{{/* The container, for a Deployment of this chart or for any pod: `include "handrail.sidecar" .Subcharts.handrail` in the
     list of `initContainers`, or of `containers` where sidecar.native is false. */}}
{{- define "handrail.sidecar" -}}
{{- $listeners := include "handrail.listeners" . | fromJsonArray -}}
- name: handrail
  image: {{ printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [run, -c, /etc/handrail/handrail.yaml]
  {{- if and .Values.sidecar.native (not .Values.gateway.enabled) }}
  restartPolicy: Always
  {{- end }}
  ports:
    {{- range $listeners }}
    {{- if not .near }}
    - {name: {{ .name }}, containerPort: {{ .port }}, protocol: TCP}
    {{- end }}
    {{- end }}
  {{- if or .Values.clickhouse.dsnSecret.name .Values.env }}
  env:
    {{- with .Values.clickhouse.dsnSecret }}
    {{- if .name }}
    - name: HANDRAIL_CLICKHOUSE
      valueFrom: {secretKeyRef: {name: {{ .name | quote }}, key: {{ .key | quote }}}}
    {{- end }}
    {{- end }}
    {{- with .Values.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  {{- with .Values.envFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  startupProbe:
    httpGet: {path: /readyz, port: admin}
    periodSeconds: 1
    failureThreshold: 60
  readinessProbe:
    httpGet: {path: /readyz, port: admin}
    periodSeconds: 5
  livenessProbe:
    httpGet: {path: /healthz, port: admin}
    periodSeconds: 10
    timeoutSeconds: 5
  resources:
    {{- toYaml .Values.resources | nindent 4 }}
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    capabilities: {drop: [ALL]}
  volumeMounts:
    - {name: handrail-config, mountPath: /etc/handrail, readOnly: true}
    - {name: handrail-state, mountPath: /var/lib/handrail}
    - {name: handrail-tmp, mountPath: /tmp}
{{- end }}

{{/* What the container mounts, for the list of `volumes`. */}}
{{- define "handrail.volumes" -}}
- name: handrail-config
  configMap:
    name: {{ include "handrail.name" . }}
    items:
      - {key: handrail.yaml, path: handrail.yaml}
      {{- range $subject, $versions := .Values.schemas }}
      {{- range $version, $_ := $versions }}
      - key: {{ include "handrail.schema_key" (dict "subject" $subject "version" $version) }}
        path: schemas/{{ $subject }}/{{ $version }}.json
      {{- end }}
      {{- end }}
      {{- range $name, $_ := .Values.rules }}
      - {key: rules__{{ $name }}.yaml, path: rules/{{ $name }}.yaml}
      {{- end }}
- name: handrail-state
  {{- if and .Values.persistence.enabled .Values.gateway.enabled }}
  persistentVolumeClaim: {claimName: {{ default (include "handrail.name" .) .Values.persistence.existingClaim }}}
  {{- else }}
  emptyDir: {}
  {{- end }}
- name: handrail-tmp
  emptyDir: {}
{{- end }}

{{/* Long enough to let exchanges finish and rows leave. */}}
{{- define "handrail.grace" -}}
{{- $limits := default (dict) .Values.config.limits }}
{{- $dsn := default "" (default (dict) .Values.config.clickhouse).dsn }}
{{- add (ceil (default 25 $limits.drain_seconds)) (ternary 65 10 (hasPrefix "chdb:" $dsn)) }}
{{- end }}
