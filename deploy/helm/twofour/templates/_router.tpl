{{- /* docs/scaling.md says why each. */ -}}
{{- define "twofour.routerArgs" -}}
{{- range list
  "--host" "0.0.0.0" "--port" "8000" "--prometheus-host" "0.0.0.0" "--prometheus-port" "29000"
  "--service-discovery" "--service-discovery-namespace" .Release.Namespace "--service-discovery-port" "8000"
  "--selector"
  (printf "app.kubernetes.io/name=%s" .Chart.Name)
  (printf "app.kubernetes.io/instance=%s" .Release.Name)
  "app.kubernetes.io/component=engine"
  "--policy" .Values.router.policy "--retry-max-retries" "5"
  "--cb-failure-threshold" "3" "--cb-success-threshold" "1" "--cb-timeout-duration-secs" "2"
  "--health-check-endpoint" "/ready" "--health-check-interval-secs" "1" "--health-check-timeout-secs" "2"
  "--health-failure-threshold" "1" "--health-success-threshold" "1"
  "--worker-startup-check-interval" "1" "--max-payload-size" "8388608"
}}
- {{ . | quote }}
{{- end }}
{{- range .Values.router.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}
