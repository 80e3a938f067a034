{{- /* The one place where times of an end are added up. */ -}}
{{- define "twofour.graceSeconds" -}}
{{- $needed := add .Values.drain.preStopSeconds .Values.drain.drainSeconds | int -}}
{{- $grace := .Values.drain.graceSeconds | default (add $needed 15) | int -}}
{{- if le $grace $needed -}}
{{- fail (printf "drain.graceSeconds is %d, and preStopSeconds and drainSeconds are %d together: the server would be killed while it drains; leave graceSeconds out, or give more than %d" $grace $needed $needed) -}}
{{- end -}}
{{- $grace -}}
{{- end -}}

{{- /* A router ends when the streams that it carries have ended, so it outlives the servers. */ -}}
{{- define "twofour.routerGraceSeconds" -}}
{{- add (include "twofour.graceSeconds" . | int) 30 -}}
{{- end -}}

{{- define "twofour.preStop" -}}
{{- with .Values.drain.preStopSeconds }}
lifecycle:
  preStop:
    sleep:
      seconds: {{ . }}
{{- end }}
{{- end -}}
