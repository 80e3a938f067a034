{{- /* What every pod may and may not do. */ -}}
{{- define "twofour.podSecurity" -}}
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* (list . gpus) */ -}}
{{- define "twofour.containerSecurity" -}}
{{- $root := index . 0 -}}
securityContext:
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
  readOnlyRootFilesystem: {{ not (and (index . 1) $root.Values.gpu.writableRoot) }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{- /* (list . gpus): where a pod may run. */ -}}
{{- define "twofour.placement" -}}
{{- $root := index . 0 -}}
{{- $gpus := index . 1 -}}
{{- with $root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat $root.Values.tolerations (ternary $root.Values.gpu.tolerations list (gt (int $gpus) 0)) }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $gpus }}
{{- with $root.Values.gpu.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* (list . gpus): the one of the values, or one for GPUs that have 2:4 tensor cores. */ -}}
{{- define "twofour.affinity" -}}
{{- $root := index . 0 -}}
{{- if $root.Values.affinity }}
affinity:
  {{- toYaml $root.Values.affinity | nindent 2 }}
{{- else if and (index . 1) $root.Values.gpu.minComputeMajor }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - key: nvidia.com/gpu.compute.major
              operator: Gt
              values: [{{ sub $root.Values.gpu.minComputeMajor 1 | quote }}]
{{- end }}
{{- end -}}

{{- /* (list . "engine") */ -}}
{{- define "twofour.spread" -}}
{{- $parts := . -}}
{{- with (index . 0).Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with (index . 0).Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{- toYaml . | nindent 4 }}
    labelSelector:
      matchLabels:
        {{- include "twofour.selector" $parts | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- end }}
{{- end -}}

{{- /* (list . resources gpus): a request for a GPU is its limit. */ -}}
{{- define "twofour.resources" -}}
{{- $resources := deepCopy (index . 1) -}}
{{- $name := (index . 0).Values.gpu.resource -}}
{{- with index . 2 -}}
{{- $_ := set $resources "limits" (set ($resources.limits | default dict) $name (int .)) -}}
{{- $_ := set $resources "requests" (set ($resources.requests | default dict) $name (int .)) -}}
{{- end -}}
resources:
  {{- toYaml $resources | nindent 2 }}
{{- end -}}

{{- /* (list . port): for a Prometheus that reads annotations. */ -}}
{{- define "twofour.annotations" -}}
{{- $root := index . 0 -}}
{{- $scrape := dict "prometheus.io/scrape" "true" "prometheus.io/path" "/metrics" "prometheus.io/port" (index . 1) -}}
{{- with merge (deepCopy $root.Values.podAnnotations) (ternary dict $scrape $root.Values.monitoring.serviceMonitor) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* What is written lies here; the root filesystem is read-only. */ -}}
{{- define "twofour.scratchMounts" -}}
- name: cache
  mountPath: /cache
- name: tmp
  mountPath: /tmp
{{- end -}}

{{- define "twofour.scratchVolumes" -}}
- name: cache
  {{- if .Values.cache.existingClaim }}
  persistentVolumeClaim:
    claimName: {{ .Values.cache.existingClaim }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .Values.cache.size }}
  {{- end }}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.tmpSize }}
{{- end -}}

{{- /* No name of a user goes with the number 10001 in vLLM's image: USER is asked for first. */ -}}
{{- define "twofour.environment" -}}
- name: HOME
  value: /cache
- name: USER
  value: twofour
- name: TWOFOUR_CACHE
  value: /cache
- name: HF_HUB_OFFLINE
  value: "1"
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}
