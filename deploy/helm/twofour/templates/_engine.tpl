{{- /* The words of `twofour serve`, as YAML. */ -}}
{{- define "twofour.serveArgs" -}}
- serve
- {{ printf "/model/%s" .Values.model.path | trimSuffix "/" | quote }}
- --engine
- {{ .Values.engine }}
- --served-model-name
- {{ .Values.model.name | quote }}
- --host
- 0.0.0.0
- --port
- "8000"
- --api-key-file
- {{ printf "/run/secrets/twofour/%s" .Values.keys.key | quote }}
- --drain-s
- {{ .Values.drain.drainSeconds | quote }}
{{- if eq .Values.engine "embedded" }}
{{- include "twofour.embeddedArgs" . }}
{{- end }}
{{- range .Values.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- if eq .Values.engine "vllm" }}
- --
- --tensor-parallel-size
- {{ .Values.vllm.tensorParallelSize | quote }}
{{- range .Values.vllm.args }}
- {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "twofour.embeddedArgs" -}}
{{- with .Values.embedded }}
{{- if .threads }}
- --threads
- {{ .threads | quote }}
{{- end }}
{{- if ne .kernels "auto" }}
- --kernels
- {{ .kernels }}
{{- end }}
{{- if ne .lmHead "checkpoint" }}
- --lm-head
- {{ .lmHead }}
{{- end }}
{{- if ne .denseValues "checkpoint" }}
- --dense-values
- {{ .denseValues }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* /ready says no while a model is loaded and from the first moment of a drain; /health only where the process is lost. */ -}}
{{- define "twofour.serveProbes" -}}
{{- with .Values.probes -}}
startupProbe:
  httpGet: {path: /ready, port: http}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: {{ div (add .startupSeconds 4) 5 }}
readinessProbe:
  httpGet: {path: /ready, port: http}
  periodSeconds: {{ .readinessSeconds }}
  timeoutSeconds: 3
  failureThreshold: 2
livenessProbe:
  httpGet: {path: /health, port: http}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: {{ .livenessFailures }}
{{- end }}
{{- end -}}

{{- define "twofour.modelVolume" -}}
- name: model
  {{- if .Values.model.image.reference }}
  image:
    reference: {{ .Values.model.image.reference | quote }}
    pullPolicy: {{ .Values.model.image.pullPolicy }}
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ include "twofour.modelClaim" . }}
    readOnly: true
  {{- end }}
{{- end -}}
